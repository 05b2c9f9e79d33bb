//! Which cluster a peer speaks to, decided by its hello and by the lists that it is on.
//! Never guesses: where two would do, none is chosen. Invariant: whoever is chosen lists the peer, and is bound to the
//! peer's cluster or to none yet.
//!
//! In this order, because each step could be wrong if an earlier one were left out:
//!
//! 1. bound to the cluster of the hello, and lists the peer: it is meant;
//! 2. lists the peer and cannot be opened: it may well be meant, and a later step would send the peer elsewhere;
//! 3. lists the peer and is bound to nothing: `setup` will bind it;
//! 4. otherwise the peer is on lists of other clusters, and is told whose they are, as a receiver of one cluster tells;
//!    also if the cluster of the hello is served, so that nobody learns what is served here beside those.
//!
//! A tool that does not know its cluster is served by the only one that lists it.

use walmgr_protocol::message::ClusterIdentity;

/// A cluster as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which it may be.
    pub state: CandidateState,
    /// Whether its list has the peer.
    pub lists_peer: bool,
}

/// What is known of a cluster's archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CandidateState {
    /// It is open, and waits for `setup`.
    Unbound,
    /// It is open.
    Bound(ClusterIdentity),
    /// It cannot be opened, so nobody knows whose it is.
    Broken,
}

/// Why none was chosen. Numbers are places among the candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotChosen {
    /// Nobody lists the peer.
    Unlisted,
    /// All archives that list the peer belong to these clusters.
    Foreign(Vec<ClusterIdentity>),
    /// Each of these would do.
    Several(Vec<usize>),
    /// This one may be meant, and is not open.
    Broken(usize),
}

/// The cluster that a peer speaks to whose hello names `theirs`.
pub(crate) fn choose(
    candidates: &[Candidate],
    theirs: Option<ClusterIdentity>,
) -> Result<usize, NotChosen> {
    let listing = |fits: &dyn Fn(CandidateState) -> bool| -> Vec<usize> {
        let numbered = candidates.iter().enumerate();
        let fitting = numbered.filter(|(_, one)| one.lists_peer && fits(one.state));
        fitting.map(|(at, _)| at).collect()
    };
    let is_broken = |state| state == CandidateState::Broken;
    let Some(theirs) = theirs else {
        let all = listing(&|_| true);
        return match only(all)? {
            Some(at) if is_broken(candidates[at].state) => Err(NotChosen::Broken(at)),
            Some(at) => Ok(at),
            None => Err(NotChosen::Unlisted),
        };
    };
    let is_theirs = |state| state == CandidateState::Bound(theirs);
    if let Some(at) = only(listing(&is_theirs))? {
        return Ok(at);
    }
    if let Some(at) = listing(&is_broken).first() {
        return Err(NotChosen::Broken(*at));
    }
    if let Some(at) = only(listing(&|state| state == CandidateState::Unbound))? {
        return Ok(at);
    }
    let others = candidates.iter().filter(|one| one.lists_peer);
    let others = others.filter_map(|one| match one.state {
        CandidateState::Bound(bound) => Some(bound),
        CandidateState::Unbound | CandidateState::Broken => None,
    });
    let others: Vec<ClusterIdentity> = others.collect();
    match others.is_empty() {
        true => Err(NotChosen::Unlisted),
        false => Err(NotChosen::Foreign(others)),
    }
}

/// The one there is, if there are not several.
fn only(found: Vec<usize>) -> Result<Option<usize>, NotChosen> {
    match found.len() {
        0 | 1 => Ok(found.first().copied()),
        _ => Err(NotChosen::Several(found)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walmgr_protocol::names::{SystemId, WalSegmentSize};

    use super::CandidateState::{Bound, Broken, Unbound};
    use super::*;

    fn cluster(system_id: u64) -> ClusterIdentity {
        ClusterIdentity {
            system_id: SystemId(system_id),
            postgres_major: 15,
            segment_size: WalSegmentSize::DEFAULT,
        }
    }

    fn listing(state: CandidateState) -> Candidate {
        Candidate {
            state,
            lists_peer: true,
        }
    }

    fn silent(state: CandidateState) -> Candidate {
        Candidate {
            state,
            lists_peer: false,
        }
    }

    #[test]
    fn fault_146_the_cluster_of_the_hello_is_chosen_where_the_key_is_listed() {
        let (a, b, c) = (cluster(1), cluster(2), cluster(3));
        let both = [listing(Bound(a)), listing(Bound(b)), listing(Unbound)];
        assert_eq!(choose(&both, Some(a)), Ok(0));
        assert_eq!(choose(&both, Some(b)), Ok(1));
        assert_eq!(choose(&both, Some(c)), Ok(2));
        let other_major = ClusterIdentity {
            postgres_major: 16,
            ..a
        };
        let foreign = NotChosen::Foreign(vec![a]);
        assert_eq!(
            choose(&[listing(Bound(a))], Some(other_major)),
            Err(foreign)
        );
    }

    #[test]
    fn fault_146_a_key_of_one_cluster_opens_no_other() {
        let (a, b, c) = (cluster(1), cluster(2), cluster(3));
        let of_a = [listing(Bound(a)), silent(Bound(b)), silent(Unbound)];
        assert_eq!(choose(&of_a, Some(a)), Ok(0));
        // The answer does not tell whether the other cluster is served here.
        assert_eq!(choose(&of_a, Some(b)), Err(NotChosen::Foreign(vec![a])));
        assert_eq!(choose(&of_a, Some(c)), Err(NotChosen::Foreign(vec![a])));
        assert_eq!(choose(&of_a, None), Ok(0));
        let unlisted = [silent(Bound(a)), silent(Unbound), silent(Broken)];
        for theirs in [None, Some(a), Some(c)] {
            assert_eq!(choose(&unlisted, theirs), Err(NotChosen::Unlisted));
        }
    }

    #[test]
    fn fault_146_two_that_would_do_are_both_named_and_none_is_taken() {
        let (a, b) = (cluster(1), cluster(2));
        let unbound = [listing(Unbound), silent(Unbound), listing(Unbound)];
        let several = Err(NotChosen::Several(vec![0, 2]));
        assert_eq!(choose(&unbound, Some(a)), several);
        assert_eq!(choose(&unbound, None), several);
        let same = [listing(Bound(a)), listing(Bound(a)), silent(Bound(a))];
        assert_eq!(choose(&same, Some(a)), Err(NotChosen::Several(vec![0, 1])));
        assert_eq!(choose(&same[1..], Some(a)), Ok(0));
        let mixed = [listing(Bound(b)), listing(Unbound)];
        assert_eq!(choose(&mixed, None), Err(NotChosen::Several(vec![0, 1])));
    }

    #[test]
    fn fault_146_a_broken_cluster_that_lists_the_key_is_never_passed_over() {
        let (a, b) = (cluster(1), cluster(2));
        let broken = [listing(Broken), listing(Unbound), listing(Bound(b))];
        assert_eq!(choose(&broken, Some(a)), Err(NotChosen::Broken(0)));
        assert_eq!(choose(&broken, Some(b)), Ok(2));
        assert_eq!(choose(&broken[..1], None), Err(NotChosen::Broken(0)));
        let others = [silent(Broken), listing(Unbound)];
        assert_eq!(choose(&others, Some(a)), Ok(1));
    }

    /// What [`choose`] has to take, found in another way: each candidate gets a rank, and the best one is taken if it
    /// has the rank alone and is not broken.
    fn model(candidates: &[Candidate], theirs: Option<ClusterIdentity>) -> Option<usize> {
        let rank = |one: &Candidate| match (one.lists_peer, one.state, theirs) {
            (false, ..) => None,
            (true, Bound(bound), Some(theirs)) => (bound == theirs).then_some(1),
            (true, Broken, Some(_)) => Some(2),
            (true, Unbound, Some(_)) => Some(3),
            (true, _, None) => Some(1),
        };
        let best = candidates.iter().filter_map(rank).min()?;
        let of_best = |one: &&Candidate| rank(one) == Some(best);
        let is_alone = candidates.iter().filter(of_best).count() == 1;
        let at = candidates.iter().position(|one| rank(one) == Some(best))?;
        (is_alone && candidates[at].state != Broken).then_some(at)
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        let state = prop_oneof![
            Just(Unbound),
            Just(Broken),
            (1..4_u64).prop_map(|id| Bound(cluster(id))),
        ];
        (state, any::<bool>()).prop_map(|(state, lists_peer)| Candidate { state, lists_peer })
    }

    proptest! {
        #[test]
        fn fault_146_the_choice_is_that_of_a_simple_model(
            candidates in prop::collection::vec(candidate(), 0..6),
            theirs in prop::option::of((1..4_u64).prop_map(cluster)),
        ) {
            let chosen = choose(&candidates, theirs);
            // Nobody learns anything of a cluster whose list does not have the peer.
            let without_places = |choice: Result<usize, NotChosen>| match choice {
                Ok(_) => Ok(()),
                Err(NotChosen::Several(places)) => Err(NotChosen::Several(vec![0; places.len()])),
                Err(NotChosen::Broken(_)) => Err(NotChosen::Broken(0)),
                Err(other) => Err(other),
            };
            let those_that_list = candidates.iter().copied().filter(|one| one.lists_peer);
            let alone = choose(&those_that_list.collect::<Vec<_>>(), theirs);
            prop_assert_eq!(without_places(alone), without_places(chosen.clone()));
            prop_assert_eq!(chosen.clone().ok(), model(&candidates, theirs));
            match chosen {
                Ok(at) => {
                    prop_assert!(candidates[at].lists_peer);
                    if let (Bound(bound), Some(theirs)) = (candidates[at].state, theirs) {
                        prop_assert_eq!(bound, theirs);
                    }
                }
                Err(NotChosen::Broken(at)) => prop_assert_eq!(candidates[at], listing(Broken)),
                Err(NotChosen::Several(places)) => {
                    prop_assert!(places.len() > 1);
                    prop_assert!(places.iter().all(|at| candidates[*at].lists_peer));
                }
                // What is told of others is told only to who is on their lists.
                Err(NotChosen::Foreign(bound)) => for one in bound {
                    prop_assert!(candidates.contains(&listing(Bound(one))));
                    prop_assert_ne!(Some(one), theirs);
                },
                Err(NotChosen::Unlisted) => {}
            }
        }
    }
}
