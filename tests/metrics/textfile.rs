//! `status --metrics FILE` that is killed at any moment.
//! Never looks at more than the file. Invariant tested: under the name stands a whole page, the old one or the new one.

use std::process::Stdio;

use crate::support::strace::Strace;
use crate::support::{Output, Site};

/// The system calls that make the page.
const CALLS: [&str; 5] = ["openat", "write", "fchmod", "close", "rename"];

/// So many of the last calls of each kind are killed in: those before are none of the page's.
const LAST_CALLS: usize = 3;

#[test]
fn fault_192_a_kill_while_the_textfile_is_written_leaves_a_whole_page() {
    let strace = skip_unless!(Strace::available());
    let site = Site::start();
    let file = site.home().join("walmgr.prom");
    let path = file.to_str().unwrap();
    let write = |strace: &Strace| -> Output {
        let walmgr = site.standby_walmgr(&["status", "--metrics", path]);
        let mut traced = strace.wrap(&walmgr);
        traced.stdin(Stdio::null()).output().unwrap().into()
    };
    let strace = strace.unprivileged().trace(&CALLS.join(","));
    assert!(write(&strace).code.is_some());
    let whole = std::fs::read_to_string(&file).unwrap();
    let last_metric = |page: &str| {
        let last = page.lines().last().unwrap_or_default();
        last.split(' ').next().unwrap_or_default().to_owned()
    };
    let log = strace.log();
    let renames = log.iter().find(|line| line.contains(" rename"));
    let (thread, _) = renames.unwrap().split_once(' ').unwrap();
    let mut killed = 0;
    for call in CALLS {
        let is_it = |line: &&String| {
            let behind = line.strip_prefix(thread).map(str::trim_start);
            let behind = behind.and_then(|behind| behind.strip_prefix(call));
            behind.is_some_and(|behind| behind.starts_with('('))
        };
        let count = log.iter().filter(is_it).count();
        assert!(count > 0, "{call}: {log:#?}");
        for when in count.saturating_sub(LAST_CALLS) + 1..=count {
            let strace = Strace::available().unwrap().unprivileged();
            let strace = strace.inject(&format!("{call}:signal=KILL:when={when}"));
            killed += usize::from(write(&strace).code.is_none());
            let page = std::fs::read_to_string(&file).unwrap();
            assert!(page.ends_with('\n'), "{call} {when}: {page}");
            assert_eq!(last_metric(&page), last_metric(&whole), "{call} {when}");
            assert_eq!(page.lines().count(), whole.lines().count(), "{call} {when}");
        }
    }
    assert!(killed >= CALLS.len(), "{killed}");
    // What the kills left is no page that node_exporter reads.
    let names = std::fs::read_dir(site.home().path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages: Vec<_> = names.filter(|name| name.ends_with(".prom")).collect();
    assert_eq!(pages, ["walmgr.prom"]);
}
