//! Calls of `xrestore` that looked for STOP before a boot wrote it, and answer after it has promoted.
//! Never lets the call read STOP in time: it is held up in the archive. Invariant tested: a boot that is
//! forced opens the server, whatever such a call saw there.

use super::*;

/// Holds up a call where it reads which timeline its server follows: STOP is read by then, the archive is not.
const HOLDS: &str = "case $4 in *.history) exec \"$@\";; esac\n\
    walmgr=$1; shift\n\
    exec strace -f -qq -o /dev/null -P ./postgresql.conf \
    -e trace=openat -e inject=openat:delay_enter=4000000 \
    $walmgr --set on_corrupt=stall \"$@\"\n";

/// A standby whose call waits for `continue`, before two more segments; names the first of them.
fn two_behind() -> (Site, Cluster, String) {
    let (site, standby) = shipping(true);
    restore_through(&site, &standby, HOLDS);
    site.cluster().psql("CREATE TABLE t (n int)");
    let first = finish(&site);
    wait_until_restored(&standby, &first);
    site.standby_command(&["pause"]).succeed();
    site.cluster().psql("INSERT INTO t VALUES (1)");
    let second = finish(&site);
    site.cluster().psql("INSERT INTO t VALUES (2)");
    finish(&site);
    (site, standby, second)
}

fn a_late_look_ends_no_forced_boot(mut site: Site, standby: &Cluster) {
    site.cluster_mut().kill9();
    site.standby_command(&["continue"]).succeed();
    std::thread::sleep(Duration::from_secs(1));
    let booted = site.standby_command(&["boot", "--force"]);
    booted.fail_last(1, "lacks WAL that was acknowledged");
    assert_eq!(count(standby), 0, "{}", standby.log());
}

#[test]
fn fault_78_a_late_look_at_a_gap_ends_no_forced_boot() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    let (site, standby, second) = two_behind();
    fs::remove_file(site.stored_path(second)).unwrap();
    a_late_look_ends_no_forced_boot(site, &standby);
}

#[test]
fn fault_78_a_late_look_at_a_damaged_segment_ends_no_forced_boot() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    let (site, standby, second) = two_behind();
    let path = site.unpacked_path(second);
    let mut content = fs::read(&path).unwrap();
    content[100] ^= 1;
    fs::write(&path, content).unwrap();
    a_late_look_ends_no_forced_boot(site, &standby);
}
