//! `pause`: holds replay behind the segment that is being restored.
//! Never touches the server. Invariant: when it returns 0, no further segment is handed over until
//! `continue` or `boot`.

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::Options;
use crate::output;
use crate::standby::replay::{ControlFiles, STEP};
use crate::standby::standing;

/// Writes PAUSE and waits for the segment under way.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let control = ControlFiles::of(config);
    let folder = control.folder().display();
    if options.not_really {
        let doing = match control.is_paused()? {
            true => "do nothing: replay is paused".to_owned(),
            false => format!("write {folder}/PAUSE"),
        };
        return output::not_really(&doing);
    }
    if !control.pause()? {
        tracing::info!("replay is already paused");
    }
    // xrestore says what it restores before it looks for PAUSE, so nothing can slip through.
    let mut said = None;
    while let Some(name) = control.restoring()? {
        if said.as_ref() != Some(&name) {
            tracing::info!("waiting for {name}, which is being restored");
            said = Some(name);
        }
        // PROGRESS is blanked in its place, of which the folder's time tells nothing.
        std::thread::sleep(STEP);
    }
    match standing::at_target(config) {
        Some(waits) => tracing::info!("replay is paused; {waits}"),
        None => tracing::info!("replay is paused; `continue` resumes it"),
    }
    Ok(())
}
