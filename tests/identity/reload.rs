//! SIGHUP with files that are wrong: the old settings stay, the log says so, nobody notices.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Site, soak, wait_for};

fn count(site: &Site, words: &str) -> usize {
    site.receiver.log().matches(words).count()
}

/// Sends SIGHUP, and waits until the receiver says how it went.
fn reload(site: &Site, words: &str) {
    let before = count(site, words);
    site.receiver.signal(Signal::HUP);
    wait_for(words, Duration::from_secs(5), || {
        (count(site, words) == before + 1).then_some(())
    });
}

#[test]
fn fault_97_a_reload_of_bad_files_keeps_the_old_settings_and_serves_on() {
    let site = Site::start();
    let keys: PathBuf = site.standby_ini().with_file_name("authorized_keys");
    let broken: [(PathBuf, &str); 6] = [
        (site.standby_ini().into(), "[walmgr]\nlisten 127\n"),
        (site.standby_ini().into(), ""),
        (site.standby_ini().with_extension("crt"), "no certificate"),
        (site.standby_ini().with_extension("key"), "no key"),
        (keys.clone(), "SHA256:short master\n"),
        (keys, "\u{0}\u{1}"),
    ];
    let rounds = if soak() { 20 } else { 2 };
    let mut number = 0;
    for _ in 0..rounds {
        for (path, content) in &broken {
            let good = std::fs::read(path).unwrap();
            std::fs::write(path, content).unwrap();
            reload(&site, "reload failed, the old settings remain in force");
            number += 1;
            site.write_segment(number);
            // The master does not read the standby's files.
            site.archive(&site.segment_name(number)).succeed();
            std::fs::write(path, good).unwrap();
            reload(&site, "settings and keys reloaded");
            number += 1;
            site.write_segment(number);
            site.archive(&site.segment_name(number)).succeed();
        }
    }
    assert_eq!(
        site.archived_names().len(),
        usize::try_from(number).unwrap()
    );
}

#[test]
fn fault_97_what_a_running_receiver_cannot_change_is_refused_by_name() {
    let mut site = Site::start();
    site.standby_set("log_format", "json");
    reload(&site, "log_format cannot change by a reload");
    site.standby_set("log_format", "text");
    let port = site.address().port() + 1;
    site.standby_set("listen", &format!("127.0.0.1:{port}"));
    reload(&site, "reload failed, the old settings remain in force");
    assert!(
        site.receiver
            .log()
            .contains("listen cannot change by a reload")
    );
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
}

#[test]
fn fault_97_twenty_reloads_in_the_middle_of_an_upload_disturb_nobody() {
    let site = Site::builder().proxied().build();
    let name = site.segment_name(1);
    site.write_segment(1);
    let running = crate::network::half_way(&site, &name, Duration::from_secs(2));
    for _ in 0..20 {
        reload(&site, "settings and keys reloaded");
    }
    running.end(Duration::from_secs(10)).succeed();
    assert_eq!(site.archived(&name), site.segment(1, "walmgr"));
}
