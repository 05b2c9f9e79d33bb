//! Many clusters on one receiver: keys, faults, hundreds that are idle, files that come and go.
//! Never shares anything between two clusters but the receiver. Invariant tested: what one cluster does or suffers,
//! no other notices.

mod faults;
mod files;
mod idle;
mod keys;
mod unserved;
mod verify;

use crate::support::{Host, Site};

/// A host that runs, with a cluster of each of these names; the data directories only look like ones.
fn host_of(names: &[&str]) -> (Host, Vec<Site>) {
    started(Host::builder().build(), names)
}

/// The same with a host that does not run yet.
fn started(mut host: Host, names: &[&str]) -> (Host, Vec<Site>) {
    host.start();
    let sites = (1_u64..).zip(names).map(|(number, name)| {
        let site = Site::builder().system_id(7_700_000_000_000_000_000 + number);
        host.add(name, site)
    });
    let sites = sites.collect();
    (host, sites)
}

/// Archives a segment, and looks whether it is in the cluster's own folder.
fn archives(site: &Site, number: u64) {
    let name = site.segment_name(number);
    site.write_segment(number);
    site.archive(&name).succeed();
    assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
}
