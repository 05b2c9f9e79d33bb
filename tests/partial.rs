//! Shipping of the segment in progress against real servers: `sync`, `syncdaemon`, and what the
//! receiver makes of what they send. Never looks into the stream: what counts are the files.
//! Invariant tested: the standby's copy is the master's WAL, up to a whole record, zeros behind it.

use std::path::PathBuf;

use walmgr_protocol::names::Lsn;

use crate::support::{Cluster, Output, Site, stored};

mod beside;
pub mod daemon;
mod faults;
mod flow;
mod manners;
mod sizes;
mod two_hosts;

/// A master that archives nothing by itself, and its receiver.
fn site_of(cluster: Cluster, asked: bool) -> Site {
    Site::builder()
        .cluster(cluster)
        .master_set("use_xlog_functions", if asked { "1" } else { "0" })
        .build()
}

/// The bytes of a segment that the standby holds, finished or not.
pub fn held(site: &Site, segment: &str) -> Option<Vec<u8>> {
    let partial = std::fs::read(site.partial_wals().join(segment));
    // In this order: a segment has its final name before it loses that of one in progress.
    let finished = |_| stored::read(&site.stored_path(segment));
    partial.or_else(finished).ok()
}

pub fn in_pg_wal(site: &Site, segment: &str) -> PathBuf {
    site.data().join("pg_wal").join(segment)
}

/// Panics unless the standby holds the master's WAL from `from` to `to`, and zeros behind it in
/// the last segment.
#[track_caller]
fn assert_ships(site: &Site, from: Lsn, to: Lsn) {
    let size = site.facts().cluster.segment_size.bytes();
    for number in from.0 / size..=to.0 / size {
        let segment = site.segment_name(number);
        let wanted = usize::try_from(to.0.saturating_sub(number * size).min(size)).unwrap();
        if wanted == 0 {
            continue;
        }
        // In this order: the master has what the standby had a moment ago.
        let theirs = held(site, &segment).unwrap_or_else(|| panic!("{segment} is not held"));
        let ours = std::fs::read(in_pg_wal(site, &segment)).unwrap();
        assert_eq!(theirs.len(), ours.len(), "{segment}");
        let differs = (0..wanted).find(|at| ours[*at] != theirs[*at]);
        assert_eq!(differs, None, "{segment} differs, {wanted} bytes count");
        if number == to.0 / size && site.partial_wals().join(&segment).exists() {
            let surplus = (wanted..theirs.len()).find(|at| theirs[*at] != 0);
            // A daemon may have gone on meanwhile, but only with what the master has.
            let stale = surplus.filter(|at| ours[*at] != theirs[*at]);
            assert_eq!(stale, None, "{segment} has more than the master");
        }
    }
}

pub fn flushed(site: &Site) -> Lsn {
    let lsn = site.cluster().psql("SELECT pg_current_wal_flush_lsn()");
    lsn.parse().unwrap()
}

/// Runs `sync`, and returns up to where it says that all is durable.
#[track_caller]
pub fn sync(site: &Site) -> Lsn {
    let output: Output = site.master_command(&["sync"]);
    output.succeed();
    let said = output.stderr.lines().last().unwrap_or_default();
    let lsn = said.rsplit(' ').next().unwrap_or_default();
    lsn.parse().unwrap_or_else(|_| panic!("{}", output.stderr))
}
