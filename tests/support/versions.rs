//! Which versions of PostgreSQL the tests run on: the only table of them.
//! Never installs one: `tests/fetch-postgres.sh` does. Invariant: every version that walmgr supports is in the
//! table, and what a run leaves out it leaves out by this table or says SKIP.

use super::{Cluster, report_skip, soak};

/// When the tests of every version run on this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Always.
    Always,
    /// With `ALL_VERSIONS=1`, or `./test.sh --soak`.
    AllVersions,
}

/// The table, the oldest version first.
pub const VERSIONS: [(u8, Turn); 6] = [
    (OLDEST, Turn::AllVersions),
    (14, Turn::AllVersions),
    (DEBIANS, Turn::Always),
    (16, Turn::AllVersions),
    (17, Turn::AllVersions),
    (NEWEST, Turn::Always),
];

const OLDEST: u8 = 13;
/// The one that Debian has, with its own directories.
const DEBIANS: u8 = 15;
const NEWEST: u8 = 18;

/// For a test of what two versions do alike: those that are always there.
pub const USUAL: [u8; 2] = [DEBIANS, NEWEST];
/// For a test of what the versions do differently from one end to the other.
pub const ENDS: [u8; 2] = [OLDEST, NEWEST];
/// The same, and the usual one.
pub const ENDS_AND_USUAL: [u8; 3] = [OLDEST, DEBIANS, NEWEST];
/// The usual ones and that whose libpq brought direct TLS.
pub const USUAL_AND_17: [u8; 3] = [DEBIANS, 17, NEWEST];

/// Every version.
pub const MAJORS: [u8; 6] = {
    let (mut majors, mut at) = ([0; 6], 0);
    while at < majors.len() {
        majors[at] = VERSIONS[at].0;
        at += 1;
    }
    majors
};

/// Whether it is this version's turn in this run.
pub fn is_its_turn(major: u8) -> bool {
    let all = soak() || std::env::var("ALL_VERSIONS").is_ok_and(|set| !matches!(&*set, "" | "0"));
    let mut table = VERSIONS.into_iter();
    table.any(|(listed, turn)| listed == major && (all || turn == Turn::Always))
}

/// The versions whose turn it is and that can run here; prints a SKIP line for those that cannot.
pub fn available_majors() -> Vec<u8> {
    let possible = |major: &u8| match Cluster::available(*major) {
        Ok(()) => true,
        Err(reason) => {
            report_skip(&reason);
            false
        }
    };
    let in_turn = MAJORS.into_iter().filter(|major| is_its_turn(*major));
    in_turn.filter(possible).collect()
}

#[test]
fn the_usual_versions_are_those_whose_turn_is_always() {
    let always = VERSIONS
        .into_iter()
        .filter(|(_, turn)| *turn == Turn::Always);
    assert!(always.map(|(major, _)| major).eq(USUAL));
    assert!(MAJORS.is_sorted());
    assert_eq!(MAJORS.last(), Some(&NEWEST));
    assert!(MAJORS.into_iter().all(|major| {
        walmgr::test_support::pg::data_directory::SUPPORTED_MAJORS.contains(&major)
    }));
}
