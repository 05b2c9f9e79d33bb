//! A connection of a backup, whether it controls or carries a stream, between both of its ends.
//! Never holds content. Invariant: the receiver never seals on a stream's connection or with a part
//! cut short, and a stream's blocks have no hole.

use std::collections::VecDeque;

use arbitrary::Unstructured;

use super::messages;
use super::run::{Ends, Over, run};
use crate::fuzzing::backup::sealed;
use crate::message::Message;
use crate::message::backup::{Backup, BackupHeld, FileDigest, FileDone, Finish, PartName};
use crate::message::parent::FileNeed;
use crate::session::Misuse;
use crate::session::backup::{
    BackupReceiver, BackupReceiverAction, BackupRequest, Control, ControlEvent, ProofOfSeal,
    Stream, StreamEvent, acknowledge,
};

/// What the fuzzed receiver shows as proof: that it was asked to finish.
struct AskedTo(Finish);

impl ProofOfSeal for AskedTo {
    fn name(&self) -> String {
        self.0.stop.to_string()
    }
}

/// Both ends of a connection of a backup.
pub fn backup_session(input: &[u8]) {
    run(input, &mut FuzzedConnection::default());
}

#[derive(Default)]
enum Client {
    #[default]
    None,
    Control(Control),
    Stream {
        stream: Stream,
        /// How many files were asked for without an answer.
        asked: Option<usize>,
        /// Between the grant and the end, and not while files are looked up.
        may_send: bool,
    },
}

#[derive(Default)]
struct FuzzedConnection {
    receiver: BackupReceiver,
    controls: Option<bool>,
    stream_bytes: u64,
    part_bytes: u64,
    part_size: u64,
    client: Client,
    to_receiver: VecDeque<Message>,
    to_client: VecDeque<Message>,
    /// Somebody else spoke on this connection.
    is_tapped: bool,
}

impl Ends for FuzzedConnection {
    fn arrive(&mut self, message: Message, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Some(action) = self.receiver.received(message)? else {
            return Ok(());
        };
        if choices.ratio(1, 16)? && !matches!(action, BackupReceiverAction::Abort(_)) {
            let failed = self.receiver.failed(messages::error(choices)?);
            self.send(failed);
            assert!(self.receiver.is_idle());
            return Ok(());
        }
        match action {
            BackupReceiverAction::Admit(request) => self.admit(&request, choices)?,
            BackupReceiverAction::LookUp(paths) => {
                assert_eq!(self.controls, Some(false));
                let one_more = vec![BackupHeld::Nothing; paths.len() + 1];
                assert!(self.receiver.looked_up(one_more).is_err());
                let held = paths.iter().map(|_| messages::held(choices));
                let held = held.collect::<Result<Vec<_>, _>>()?;
                let answer = self.receiver.looked_up(held);
                self.answer_awaited(answer);
            }
            BackupReceiverAction::ChooseParent(_) => {
                assert_eq!(self.controls, Some(true));
                let answer = self.receiver.parent_chosen(messages::parent(choices)?);
                self.answer_awaited(answer);
            }
            BackupReceiverAction::Compare(files) => {
                self.assert_no_part();
                let one_more = vec![FileNeed::Whole; files.len() + 1];
                assert!(self.receiver.compared(one_more).is_err());
                let answer = self.receiver.compared(vec![FileNeed::Whole; files.len()]);
                self.answer_awaited(answer);
            }
            BackupReceiverAction::Write(data) => {
                assert_eq!(self.controls, Some(false));
                assert_eq!(data.offset, self.stream_bytes, "a hole or an overlap");
                self.stream_bytes += u64::from(data.raw_bytes);
                if choices.ratio(1, 4)? {
                    let done = Backup::FilesDone(files_done(choices)?);
                    self.to_client.push_back(Message::Backup(done));
                }
            }
            BackupReceiverAction::EndStream(bytes) => {
                assert_eq!((self.controls, bytes), (Some(false), self.stream_bytes));
                let taken = self.receiver.stream_taken();
                self.answer_awaited(taken);
                assert_eq!(self.receiver.stream_taken(), Ok(None));
                assert!(self.receiver.is_idle());
            }
            BackupReceiverAction::BeginPart(part) => {
                self.assert_whole();
                (self.part_bytes, self.part_size) = (0, part.size);
            }
            BackupReceiverAction::WritePart(data) => {
                assert_eq!(data.offset, self.part_bytes, "a hole or an overlap");
                self.part_bytes += u64::from(data.raw_bytes);
                assert!(self.part_bytes <= self.part_size);
            }
            BackupReceiverAction::Finish(finish) => {
                self.assert_whole();
                assert!(self.receiver.is_finishing());
                let sealed = acknowledge(&AskedTo(finish), sealed());
                let answer = self.receiver.sealed(sealed);
                self.answer_awaited(answer);
                assert!(self.receiver.is_idle());
            }
            BackupReceiverAction::Abort(_) => assert!(self.receiver.is_idle()),
            send @ BackupReceiverAction::Send(_) => self.send(send),
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        match choices.int_in_range(0_u8..=17)? {
            0 => self.connect(choices)?,
            1..=3 => self.control(choices)?,
            4..=8 => self.stream(choices)?,
            9..=11 => {
                if let Some(message) = self.to_receiver.pop_front()
                    && self.arrive(message, choices).is_err()
                {
                    assert!(
                        self.is_tapped || choices.is_empty(),
                        "an honest client was refused"
                    );
                    self.break_link();
                }
            }
            12..=14 => {
                if let Some(message) = self.to_client.pop_front() {
                    self.answer(message);
                }
            }
            15 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                if self.arrive(message, choices).is_err() {
                    self.break_link();
                }
            }
            16 => {
                self.is_tapped = true;
                let message = messages::any(choices)?;
                self.answer(message);
            }
            _ => self.break_link(),
        }
        Ok(())
    }
}

impl FuzzedConnection {
    fn send(&mut self, action: BackupReceiverAction) {
        match action {
            BackupReceiverAction::Send(message) => self.to_client.push_back(message),
            other => unreachable!("{other:?} is no answer"),
        }
    }

    /// Nothing that was asked for goes unanswered.
    fn answer_awaited(&mut self, action: Result<Option<BackupReceiverAction>, Misuse>) {
        let action = action.expect("it was asked for");
        self.send(action.expect("nobody gave it up"));
    }

    fn assert_whole(&self) {
        let state = (self.controls, self.part_bytes);
        assert_eq!(state, (Some(true), self.part_size), "a part is cut short");
    }

    fn assert_no_part(&self) {
        let is_whole = self.part_bytes == self.part_size;
        assert!(self.controls != Some(false) && is_whole, "within a part");
    }

    fn admit(
        &mut self,
        request: &BackupRequest,
        choices: &mut Unstructured<'_>,
    ) -> Result<(), Over> {
        assert!(self.receiver.looked_up(Vec::new()).is_err());
        if let BackupRequest::Resume(_) = request
            && choices.ratio(1, 4)?
        {
            let asked = messages::finish(choices)?;
            let answer = self.receiver.sealed(acknowledge(&AskedTo(asked), sealed()));
            self.answer_awaited(answer);
            return Ok(());
        }
        if let BackupRequest::Rehearse(_) = request {
            assert!(self.receiver.compared(Vec::new()).is_err());
            let answer = self.receiver.parent_chosen(messages::parent(choices)?);
            self.answer_awaited(answer);
            return Ok(());
        }
        self.controls = Some(!matches!(request, BackupRequest::Join(_)));
        let granted = messages::granted(choices)?;
        let answer = self.receiver.admitted(granted);
        self.answer_awaited(answer);
        assert!(self.receiver.admitted(granted).is_err());
        Ok(())
    }

    fn connect(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        self.break_link();
        let message = match choices.int_in_range(0_u8..=4)? {
            4 => {
                let (control, message) = Control::rehearse(messages::parent_request(choices)?);
                self.client = Client::Control(control);
                message
            }
            0 => {
                let (control, message) = Control::begin(messages::begin(choices)?);
                self.client = Client::Control(control);
                message
            }
            1 => {
                let (control, message) = Control::resume(messages::token(choices)?);
                self.client = Client::Control(control);
                message
            }
            _ => {
                let (stream, message) = Stream::join(messages::join(choices)?);
                self.client = Client::Stream {
                    stream,
                    asked: None,
                    may_send: false,
                };
                message
            }
        };
        self.to_receiver.push_back(message);
        Ok(())
    }

    /// A part with all of its blocks, or the end.
    fn control(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Client::Control(control) = &mut self.client else {
            return Ok(());
        };
        if choices.ratio(1, 5)? {
            let finish = messages::finish(choices)?;
            self.to_receiver.extend(control.finish(finish).ok());
            return Ok(());
        }
        if choices.ratio(1, 4)? {
            let asked = match choices.arbitrary()? {
                true => control.parent(messages::parent_request(choices)?),
                false => control.compare(messages::file_lens(choices)?),
            };
            self.to_receiver.extend(asked.ok());
            return Ok(());
        }
        let (name, size) = (
            messages::part_name(choices)?,
            choices.int_in_range(0_u32..=100)?,
        );
        let Ok(part) = control.part(name, u64::from(size), choices.arbitrary()?) else {
            return Ok(());
        };
        self.to_receiver.push_back(part);
        let mut offset = 0;
        while offset < size {
            let bytes = messages::length(choices)?.min(size - offset);
            let data = messages::data(u64::from(offset), bytes, choices)?;
            self.to_receiver.push_back(Message::Data(data));
            offset += bytes;
        }
        Ok(())
    }

    fn stream(&mut self, choices: &mut Unstructured<'_>) -> Result<(), Over> {
        let Client::Stream {
            stream,
            asked,
            may_send,
        } = &mut self.client
        else {
            return Ok(());
        };
        match choices.int_in_range(0_u8..=4)? {
            0 => {
                let paths = messages::paths(choices)?;
                let count = paths.len();
                if let Ok(message) = stream.ask(paths) {
                    (*asked, *may_send) = (Some(count), false);
                    self.to_receiver.push_back(message);
                }
            }
            1 => {
                let end = stream.end();
                *may_send &= end.is_err();
                self.to_receiver.extend(end.ok());
            }
            _ if *may_send => {
                let bytes = messages::length(choices)?;
                let data = messages::data(stream.next_offset(), bytes, choices)?;
                let sent = stream.block_sent(bytes);
                sent.expect("it may send");
                self.to_receiver.push_back(Message::Data(data));
            }
            _ => {}
        }
        Ok(())
    }

    fn answer(&mut self, message: Message) {
        let is_refused = match &mut self.client {
            Client::None => false,
            Client::Control(control) => match control.received(message) {
                Ok(
                    ControlEvent::Granted(_) | ControlEvent::Parent(_) | ControlEvent::Needed(_),
                ) => false,
                Ok(ControlEvent::Sealed(_) | ControlEvent::Refused(_)) => {
                    assert!(control.received(Message::Ping).is_err(), "it goes on");
                    assert!(control.part(PartName::Label, 0, 0).is_err());
                    false
                }
                Err(_) => true,
            },
            Client::Stream {
                stream,
                asked,
                may_send,
            } => match stream.received(message) {
                Ok(StreamEvent::Granted) => {
                    *may_send = true;
                    false
                }
                Ok(StreamEvent::Held(held)) => {
                    let answered = asked.take();
                    assert_eq!(Some(held.len()), answered, "another number than asked for");
                    *may_send = true;
                    false
                }
                Ok(StreamEvent::Refused(_) | StreamEvent::Taken) => {
                    assert!(stream.received(Message::Ping).is_err(), "it goes on");
                    *may_send = false;
                    false
                }
                Ok(StreamEvent::FilesDone(_)) => false,
                Err(_) => true,
            },
        };
        if is_refused {
            assert!(self.is_tapped, "an honest receiver was refused");
            self.break_link();
        }
    }

    fn break_link(&mut self) {
        *self = FuzzedConnection::default();
    }
}

fn files_done(choices: &mut Unstructured<'_>) -> Result<Vec<FileDone>, Over> {
    let digest = FileDigest {
        len: messages::number(choices)?,
        crc32c: choices.arbitrary()?,
    };
    let paths = messages::paths(choices)?.into_iter();
    Ok(paths.map(|path| FileDone { path, digest }).collect())
}
