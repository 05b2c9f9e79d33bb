//! The states of a backup's sessions, one by one.
//! Never both ends at once: `tests/backup.rs` has those. Invariant: each state takes the kinds that it names.

use super::*;
use crate::session::{assert_expected, assert_misused};

const GRANTED: Granted = Granted {
    token: Token([0; 16]),
    lease_s: 1,
    streams_max: 1,
};

fn receivers() -> [BackupReceiverState; 13] {
    [
        BackupReceiverState::Idle,
        BackupReceiverState::Admitting(BackupRequest::Resume(Token([0; 16]))),
        BackupReceiverState::Controlling { part: None },
        BackupReceiverState::Choosing,
        BackupReceiverState::Rehearsing,
        BackupReceiverState::Comparing {
            count: 1,
            rehearses: false,
        },
        BackupReceiverState::Comparing {
            count: 1,
            rehearses: true,
        },
        BackupReceiverState::Finishing,
        BackupReceiverState::Streaming { next_offset: 1 },
        BackupReceiverState::LookingUp {
            next_offset: 1,
            count: 1,
        },
        BackupReceiverState::Ending { bytes: 1 },
        BackupReceiverState::Over,
        BackupReceiverState::Draining,
    ]
}

fn controls() -> [ControlState; 8] {
    let [begins, resumes] = [false, true].map(|resumes| ControlState::Asking { resumes });
    [
        begins,
        resumes,
        ControlState::Granted,
        ControlState::Choosing { rehearses: false },
        ControlState::Rehearsing,
        ControlState::Comparing {
            count: 1,
            rehearses: true,
        },
        ControlState::Finishing,
        ControlState::Over,
    ]
}

fn streams() -> [StreamState; 5] {
    [
        StreamState::Asking,
        StreamState::Open,
        StreamState::LookingUp { count: 1 },
        StreamState::Ending { bytes: 1 },
        StreamState::Over,
    ]
}

fn stream(state: StreamState) -> Stream {
    Stream {
        state,
        sent_bytes: 1,
    }
}

#[test]
fn each_state_takes_the_kinds_that_it_names() {
    assert_expected(receivers(), |state, message| {
        BackupReceiver { state }.received(message).map(|_| ())
    });
    assert_expected(controls(), |state, message| {
        Control { state }.received(message).map(|_| ())
    });
    assert_expected(streams(), |state, message| {
        stream(state).received(message).map(|_| ())
    });
}

#[test]
fn a_receiver_that_answers_what_was_not_asked_is_told_so() {
    let under_way = |at: fn(&BackupReceiverState) -> bool| {
        let elsewhere = receivers().into_iter().filter(move |state| !at(state));
        elsewhere
            .filter(|state| *state != BackupReceiverState::Over)
            .filter(|state| *state != BackupReceiverState::Draining)
    };
    let elsewhere = under_way(|state| matches!(state, BackupReceiverState::Admitting(_)));
    assert_misused("admitted", elsewhere, |state| {
        BackupReceiver { state }.admitted(GRANTED)
    });
    let is_looking = |state: &_| matches!(state, BackupReceiverState::LookingUp { .. });
    assert_misused("looked_up", under_way(is_looking), |state| {
        BackupReceiver { state }.looked_up(Vec::new())
    });
    let looking = receivers().into_iter().filter(is_looking);
    assert_misused("looked_up of another number", looking, |state| {
        BackupReceiver { state }.looked_up(Vec::new())
    });
    let elsewhere = under_way(|state| {
        matches!(
            state,
            BackupReceiverState::Choosing
                | BackupReceiverState::Admitting(BackupRequest::Rehearse(_))
        )
    });
    assert_misused("parent_chosen", elsewhere, |state| {
        BackupReceiver { state }.parent_chosen(ParentAnswer::Full(String::new()))
    });
    let is_comparing = |state: &_| matches!(state, BackupReceiverState::Comparing { .. });
    assert_misused("compared", under_way(is_comparing), |state| {
        BackupReceiver { state }.compared(Vec::new())
    });
    let comparing = receivers().into_iter().filter(is_comparing);
    assert_misused("compared with another number", comparing, |state| {
        BackupReceiver { state }.compared(Vec::new())
    });
    let elsewhere = under_way(|state| matches!(state, BackupReceiverState::Ending { .. }));
    assert_misused("stream_taken", elsewhere, |state| {
        BackupReceiver { state }.stream_taken()
    });
    let elsewhere = under_way(|state| {
        matches!(
            state,
            BackupReceiverState::Admitting(_) | BackupReceiverState::Finishing
        )
    });
    assert_misused("sealed", elsewhere, |state| {
        BackupReceiver { state }.sealed(Message::Ping)
    });
}

#[test]
fn reports_about_a_backup_that_was_given_up_go_nowhere() {
    for state in [BackupReceiverState::Over, BackupReceiverState::Draining] {
        let mut late = BackupReceiver { state };
        assert_eq!(late.admitted(GRANTED), Ok(None));
        assert_eq!(late.looked_up(Vec::new()), Ok(None));
        let none = ParentAnswer::Full(String::new());
        assert_eq!(late.parent_chosen(none), Ok(None));
        assert_eq!(late.compared(Vec::new()), Ok(None));
        assert_eq!(late.stream_taken(), Ok(None));
        assert_eq!(late.sealed(Message::Ping), Ok(None));
    }
}

#[test]
fn a_master_that_calls_out_of_turn_is_told_so() {
    let elsewhere = || {
        controls()
            .into_iter()
            .filter(|at| *at != ControlState::Granted)
    };
    assert_misused("part", elsewhere(), |state| {
        Control { state }.part(PartName::Label, 0, 0)
    });
    let finish = Finish {
        start: crate::names::Lsn(1),
        stop: crate::names::Lsn(2),
        timeline: crate::names::TimelineId::FIRST,
        wal_wait_s: 0,
    };
    assert_misused("finish", elsewhere(), |state| {
        Control { state }.finish(finish)
    });
    let request = ParentRequest {
        start: crate::names::Lsn(1),
        timeline: crate::names::TimelineId::FIRST,
        data_checksums: true,
        block_bytes: 8192,
        segment_blocks: 1 << 17,
        wal_wait_s: 0,
    };
    assert_misused("parent", elsewhere(), |state| {
        Control { state }.parent(request)
    });
    let elsewhere = elsewhere().filter(|at| *at != ControlState::Rehearsing);
    assert_misused("compare", elsewhere, |state| {
        Control { state }.compare(Vec::new())
    });
    let elsewhere = || streams().into_iter().filter(|at| *at != StreamState::Open);
    assert_misused("ask", elsewhere(), |state| stream(state).ask(Vec::new()));
    assert_misused("block_sent", elsewhere(), |state| {
        stream(state).block_sent(1)
    });
    assert_misused("end", elsewhere(), |state| stream(state).end());
}
