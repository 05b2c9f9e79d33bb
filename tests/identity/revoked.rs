//! Keys that are taken back while their holder is connected, or on the way in.

use std::time::{Duration, Instant};

use crate::network::{Running, half_way, tls_records};
use crate::support::proxy::{Direction, Fault};
use crate::support::{Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn fault_86_a_revoked_master_is_hung_up_on_and_refused_afterwards() {
    let site = Site::builder().proxied().build();
    let key = site.master_fingerprint();
    let name = site.segment_name(1);
    site.write_segment(1);
    let running = half_way(&site, &name, Duration::from_secs(2));
    site.standby_command(&["revoke", "master"]).succeed();
    let output = running.end(PATIENCE);
    let line = output.fail(4);
    assert!(line.contains("the key was revoked"), "{line}");
    site.receiver.wait_for_log("the key was revoked");
    let log = site.receiver.log();
    let said = log
        .lines()
        .find(|line| line.contains("the key was revoked"));
    assert!(said.unwrap().contains(&key), "no fingerprint: {log}");
    site.proxy().set_faults([]);
    let output = site.archive(&name);
    let line = output.fail(4);
    let words = format!("key {key} is not in the receiver's authorized_keys");
    assert!(line.contains(&words), "{line}");
    assert!(line.contains(&format!("authorize {key} NAME")), "{line}");
    assert_eq!(site.archived_names(), [""; 0]);
    assert!(site.temporaries().is_empty());
    // And back in, without a restart.
    site.standby_command(&["authorize", &key, "again"])
        .succeed();
    wait_for("the reload", PATIENCE, || {
        (site.archive(&name).code == Some(0)).then_some(())
    });
}

#[test]
fn fault_120_an_upload_ends_when_the_right_to_it_is_taken_back() {
    let site = Site::builder().proxied().build();
    let key = site.master_fingerprint();
    let name = site.segment_name(1);
    site.write_segment(1);
    let running = half_way(&site, &name, Duration::from_secs(4));
    site.standby_command(&["authorize", &key, "master", "--rights", "read"])
        .succeed();
    let output = running.end(PATIENCE);
    let line = output.fail(4);
    assert!(line.contains("the key lost rights"), "{line}");
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn fault_86_revoking_fails_when_the_running_receiver_cannot_be_told() {
    let site = Site::start();
    let pidfile = site.standby_ini().with_extension("pid");
    std::fs::write(pidfile, "1\n").unwrap();
    site.standby_command(&["revoke", "master"])
        .fail_last(1, "the running receiver has not read it");
}

#[test]
fn fault_86_a_key_revoked_between_tls_and_hello_does_not_come_in() {
    let site = Site::builder().proxied().build();
    let name = "00000002.history";
    site.write_wal(name, "1\t0/3000000\treason\n");
    site.archive(name).succeed();
    std::fs::remove_file(site.stored_path(name)).unwrap();
    let clean = site.proxy().recordings().pop().unwrap();
    let records = tls_records(&clean.to_server);
    // Hello, offer, block and commit are the last; what is before them is the handshake.
    let at_byte = records[records.len() - 4] as u64;
    // Less than the receiver waits for a hello, and as a rule enough to revoke.
    let by = Duration::from_secs(3);
    site.proxy()
        .set_faults([(Direction::ToServer, Fault::Delay { at_byte, by })]);
    let key = site.master_fingerprint();
    for _ in 0..20 {
        let reloads = || {
            let log = site.receiver.log();
            log.matches("settings and keys reloaded").count()
        };
        let (before, begun) = (reloads(), Instant::now());
        let running = Running::start(&site, name);
        // The receiver has seen the key once its own half of the handshake has gone out.
        wait_for("the handshake", PATIENCE, || {
            let session = site.proxy().recordings().pop()?;
            (session.to_server.len() as u64 > at_byte).then_some(())
        });
        site.standby_command(&["revoke", "master"]).succeed();
        wait_for("the reload", PATIENCE, || {
            (reloads() > before).then_some(())
        });
        let is_in_between = begun.elapsed() < by;
        let output = running.end(PATIENCE);
        if is_in_between {
            assert_ne!(output.code, Some(0), "{}", output.stderr);
            assert_eq!(site.archived_names(), [""; 0]);
        }
        // The machine was so busy that the hello came too early, or too late for any key.
        if is_in_between && output.code == Some(4) {
            return;
        }
        let _ = std::fs::remove_file(site.stored_path(name));
        let again = reloads();
        site.standby_command(&["authorize", &key, "master"])
            .succeed();
        wait_for("the reload", PATIENCE, || (reloads() > again).then_some(()));
    }
    panic!("the machine is too busy to revoke a key within {by:?}");
}
