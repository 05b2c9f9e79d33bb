//! Sessions fuzzed two ways: messages out of raw bytes, and sequences of messages that are valid.
//! Never a driver with IO: files are lengths here. Invariant: two honest ends never refuse each
//! other, and whatever a dishonest one says, no end takes a hole, an overlap or more than was offered.

mod backup;
mod fetch;
mod hello;
mod messages;
mod partial;
mod push;
mod run;
mod trial;

pub use backup::backup_session;
pub use fetch::fetch_session;
pub use hello::hello;
pub use partial::partial_session;
pub use push::push_session;
pub use run::raw_messages;
pub use trial::trial_session;

#[cfg(test)]
mod tests {
    use super::run::next_message;
    use super::*;
    use proptest::prelude::*;

    const BODIES: [fn(&[u8]); 6] = [
        push_session,
        partial_session,
        backup_session,
        fetch_session,
        trial_session,
        hello,
    ];

    #[test]
    fn every_stored_input_passes_its_body() {
        let targets = ["push", "partial", "backup", "fetch", "trial", "hello"];
        for (target, body) in targets.into_iter().zip(BODIES) {
            let folder = format!("{}/../fuzz/seeds", env!("CARGO_MANIFEST_DIR"));
            let folder = match target {
                "hello" => format!("{folder}/hello"),
                flow => format!("{folder}/{flow}_session"),
            };
            let inputs = std::fs::read_dir(&folder).unwrap();
            let count = inputs
                .map(|input| body(&std::fs::read(input.unwrap().path()).unwrap()))
                .count();
            assert!(count > 0, "{folder} has no stored inputs");
        }
    }

    #[test]
    fn every_sample_arrives_as_raw_bytes() {
        let samples = super::super::sample_messages();
        let raw = raw_messages(&samples);
        let mut rest = &raw[1..];
        for sample in samples {
            assert_eq!(next_message(&mut rest), Some(Ok(sample)));
        }
        assert_eq!(next_message(&mut rest), None);
        for body in BODIES {
            body(&raw);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn any_choices_pass_every_session(
            mode in 0_u8..2, input in proptest::collection::vec(any::<u8>(), 0..2_000),
        ) {
            for body in BODIES {
                body(&[&[mode], &input[..]].concat());
            }
        }

        #[test]
        fn small_choices_pass_every_session(
            input in proptest::collection::vec(0_u8..24, 0..1_000),
        ) {
            for body in BODIES {
                body(&[&[1], &input[..]].concat());
            }
        }
    }
}
