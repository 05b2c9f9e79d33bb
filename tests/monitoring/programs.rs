//! Prometheus, promtool and the strict parser that `tests/fetch-monitoring.sh` brought, or why they are absent.
//! Never fetches or installs them. Invariant: what a test starts here is gone when its value is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::run;

fn folder() -> PathBuf {
    let named = std::env::var_os("WALMGR_TEST_MONITORING");
    named.map_or("/var/tmp/walmgr-test-monitoring".into(), PathBuf::from)
}

/// One of the programs.
pub(super) fn program(name: &str) -> Result<PathBuf, String> {
    let path = folder().join("bin").join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(format!(
        "{name} is not in {}: sh tests/fetch-monitoring.sh brings it",
        folder().display()
    ))
}

/// `promtool` with these words, in this directory; what it said.
pub(super) fn promtool(words: &[&str], directory: &Path) -> Result<String, String> {
    let mut promtool = Command::new(program("promtool")?);
    run(promtool.args(words).current_dir(directory))
}
