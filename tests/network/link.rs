//! Links that lose packets, are slow, or go down without a word: network namespaces of their own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Running;
use crate::support::place::server_user;
use crate::support::{Site, have, run, soak, wait_for};

/// A network of its own that lives as long as the value.
struct Namespace(Child);

impl Namespace {
    fn create() -> Result<Namespace, String> {
        for program in ["unshare", "nsenter", "ip", "tc"] {
            if !have(program) {
                return Err(format!("{program} is not installed"));
            }
        }
        run(Command::new("unshare").args(["--net", "true"]))?;
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sleep", "600"]).stdin(Stdio::null());
        let child = holder.spawn().map_err(|error| error.to_string())?;
        let namespace = Namespace(child);
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        wait_for("a network namespace", Duration::from_secs(5), || {
            std::fs::read_link(namespace.path())
                .is_ok_and(|theirs| theirs != ours)
                .then_some(())
        });
        namespace.run("ip link set lo up")?;
        Ok(namespace)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }

    fn enter(&self) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path().display()));
        nsenter
    }

    /// Runs a line of words inside.
    fn run(&self, line: &str) -> Result<String, String> {
        run(self.enter().args(line.split(' ')))
    }

    /// The same command inside, as the server's user.
    fn wrap(&self, command: &Command) -> Command {
        let mut nsenter = self.enter();
        if let Ok(Some((user, group))) = server_user() {
            nsenter.args(["-S", &user.to_string(), "-G", &group.to_string()]);
        }
        nsenter.arg("--").arg(command.get_program());
        nsenter.args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            nsenter.env(name, value.unwrap_or_default());
        }
        if let Some(folder) = command.get_current_dir() {
            nsenter.current_dir(folder);
        }
        nsenter
    }

    fn archive(&self, site: &Site, name: &str) -> Running {
        let path = PathBuf::from("pg_wal").join(name);
        Running::spawn(&mut self.wrap(&site.xarchive_walmgr(&path, name)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SLOW: &str = "root tbf rate 1mbit burst 32kbit latency 400ms";

#[test]
fn fault_25_a_lossy_slow_link_with_a_deep_queue_completes() {
    let namespace = skip_unless!(Namespace::create());
    let iptables = ["iptables-legacy", "iptables"].into_iter().find(|program| {
        let rule = "-A INPUT -m statistic --mode random --probability 0.05 -j DROP";
        namespace.run(&format!("{program} {rule}")).is_ok()
    });
    if iptables.is_none() {
        skip!("iptables cannot drop packets at random here");
    }
    skip_unless!(namespace.run("ip link set lo mtu 1500"));
    skip_unless!(namespace.run(&format!("tc qdisc add dev lo {SLOW}")));
    let mut site = Site::start();
    site.receiver.stop();
    let mut receiver = namespace.wrap(&site.receiver_walmgr());
    site.receiver.start(&mut receiver).unwrap();
    let segments = if soak() { 8 } else { 1 };
    for number in 0..segments {
        let name = site.segment_name(number);
        site.write_segment(number);
        let begin = Instant::now();
        let running = namespace.archive(&site, &name);
        running.end(Duration::from_secs(70)).succeed();
        assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
        println!("1 MiB at 1 Mbit/s with 5 % loss: {:?}", begin.elapsed());
    }
}

#[test]
fn fault_24_a_link_that_goes_down_frees_the_slot_and_ends_the_client() {
    let master = skip_unless!(Namespace::create());
    let standby = skip_unless!(Namespace::create());
    let peer = standby.0.id();
    let link = format!("ip link add wm0 type veth peer name wm1 netns {peer}");
    skip_unless!(master.run(&link));
    for (namespace, device, address) in [
        (&master, "wm0", "10.99.7.1/24"),
        (&standby, "wm1", "10.99.7.2/24"),
    ] {
        namespace
            .run(&format!("ip address add {address} dev {device}"))
            .unwrap();
        namespace.run(&format!("ip link set {device} up")).unwrap();
    }
    skip_unless!(master.run(&format!("tc qdisc add dev wm0 {SLOW}")));
    let mut site = Site::start();
    site.receiver.stop();
    site.standby_set("listen", "10.99.7.2:7432");
    site.master_set("slave", "10.99.7.2:7432");
    site.master_set("push_timeout", "4");
    // Packed it would be through before the link is cut.
    site.master_set("compression", "0");
    let mut receiver = standby.wrap(&site.receiver_walmgr());
    site.receiver.start(&mut receiver).unwrap();
    let name = site.segment_name(1);
    site.write_segment(1);

    let begin = Instant::now();
    let running = master.archive(&site, &name);
    wait_for("an upload under way", Duration::from_secs(4), || {
        (!site.temporaries().is_empty()).then_some(())
    });
    master.run("ip link set wm0 down").unwrap();
    let down = Instant::now();
    let output = running.end(Duration::from_secs(60));
    assert!(
        output.fail(1).contains("push_timeout = 4s"),
        "{}",
        output.stderr
    );
    assert!(begin.elapsed() < Duration::from_secs(60));
    let bound = walmgr::test_support::receiver::IDLE_DEADLINE + Duration::from_secs(4);
    wait_for("the slot to be freed", bound, || {
        site.temporaries().is_empty().then_some(())
    });
    println!("slot freed {:?} after the link went down", down.elapsed());
    site.receiver.wait_for_log("nothing arrived for 30s");

    master.run("tc qdisc del dev wm0 root").unwrap();
    master.run("ip link set wm0 up").unwrap();
    site.master_set("push_timeout", "30");
    let running = master.archive(&site, &name);
    running.end(Duration::from_secs(30)).succeed();
    assert_eq!(site.archived(&name), site.segment(1, "walmgr"));
}
