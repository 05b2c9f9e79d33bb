//! What crosses from one segment in progress, or one frozen copy, into the next.
//! Never proves an end. Invariant: a record that begins in one segment and ends in another is seen by whoever reads
//! the second, as long as the first is here in any form.

use walmgr_protocol::names::SegmentName;

use super::freeze::PartialWals;
use super::names::partial_names;
use super::proven;
use super::records::{Before, out_of, scanner_at, start_of};
use crate::store::error::StoreError;
use crate::wal::obstacle::Obstacles;
use crate::wal::scan::Scanner;
use crate::wal::through::{Reached, Through};

impl PartialWals {
    /// What replay may not get past in each partial segment, as far as its records go, and in the records that
    /// cross into it; reads all of them.
    pub fn obstacles(
        &self,
        before: Before<'_>,
    ) -> Result<Vec<(SegmentName, Obstacles)>, StoreError> {
        let (folder, binding) = (&self.folder, &self.binding);
        let mut found = Vec::new();
        let mut carried: Option<(SegmentName, Scanner)> = None;
        for segment in partial_names(folder)? {
            let scanner = match carried.take().filter(|(next, _)| *next == segment) {
                Some((_, scanner)) => Some(scanner),
                None => before(segment)?,
            };
            let is_alone = scanner.is_none();
            let scanner = scanner.map(|it| it.forgetting().up_to_timeline(segment.timeline()));
            let mut proven = proven::by_name(folder, binding, segment, scanner)?;
            if !is_alone && proven.as_ref().is_some_and(|it| it.end.held_bytes == 0) {
                // It does not go on with that one, which whoever freezes it is told.
                proven = proven::by_name(folder, binding, segment, None)?;
            }
            let Some(proven) = proven else { continue };
            found.push((segment, proven.end.scanner.obstacles().clone()));
            let next = segment.next(binding.segment_size);
            carried = next.zip(out_of(proven.end, segment, binding));
        }
        Ok(found)
    }

    /// A scanner that comes out of what is replayed before a frozen segment: another copy, or what `before` has.
    pub fn scanner_before_copy(
        &self,
        segment: SegmentName,
        before: Before<'_>,
    ) -> Result<Option<Scanner>, StoreError> {
        let size = self.binding.segment_size;
        let copies = self.frozen()?.and_then(|freeze| freeze.segments);
        let copies = copies.unwrap_or_default();
        // Copies that one record fills, the last first.
        let (mut filled, mut at) = (Vec::new(), segment);
        let mut scanner = loop {
            let number = at.number(size).and_then(|number| number.checked_sub(1));
            let name = number.map(|number| SegmentName::from_number(at.timeline(), number, size));
            let Some(copy) = copies.iter().find(|copy| Some(copy.segment) == name) else {
                match before(at)? {
                    Some(scanner) => break scanner,
                    None => return Ok(None),
                }
            };
            let scanner = scanner_at(
                copy.segment,
                start_of(copy.segment, &self.binding),
                &self.binding,
            );
            let mut through = Through::new(scanner, copy.segment, size);
            self.read_copy(copy, |piece| through.update(piece))?;
            match through.finish() {
                Reached::Next(scanner) => break *scanner,
                Reached::Inside(_) => {
                    filled.push(*copy);
                    at = copy.segment;
                }
                Reached::Short => return Ok(None),
            }
        };
        while let Some(copy) = filled.pop() {
            let mut through = Through::new(scanner, copy.segment, size);
            self.read_copy(&copy, |piece| through.update(piece))?;
            match through.finish().out() {
                Some(out) => scanner = out,
                None => return Ok(None),
            }
        }
        Ok(Some(scanner))
    }
}
