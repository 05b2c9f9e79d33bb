//! Addresses where no receiver is.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::{Site, free_port};

#[test]
fn fault_30_an_address_without_a_receiver_is_said_within_the_deadline() {
    let mut site = Site::builder()
        .stopped()
        .master_set("connect_timeout", "2")
        .build();
    site.write_segment(1);
    let name = site.segment_name(1);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = silent.local_addr().unwrap().to_string();
    let closed_port = format!("127.0.0.1:{}", free_port());
    for (slave, words) in [
        ("no-such-host.invalid:7432", "no-such-host.invalid:7432"),
        (closed_port.as_str(), "Connection refused"),
        // Reserved for documentation: no network routes it.
        ("192.0.2.1:7432", "192.0.2.1:7432"),
        ("[2001:db8::1]:7432", "2001:db8::1"),
        (
            silent_address.as_str(),
            "did not introduce itself within 2s",
        ),
    ] {
        site.master_set("slave", slave);
        let begin = Instant::now();
        let output = site.archive(&name);
        let line = output.fail(1);
        assert!(line.contains(words), "{slave}: {line}");
        assert!(line.contains("; "), "no hint: {line}");
        let elapsed = begin.elapsed();
        assert!(elapsed < Duration::from_secs(60), "{slave}: {elapsed:?}");
    }
}
