//! The page as a file for node_exporter's textfile collector.
//! Never writes into a file that somebody may be reading, and never replaces a file that is not such a page. Invariant:
//! under the name stands a whole page at any moment.

use std::io;
use std::path::Path;

use super::samples::MetricsPage;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// What each page begins with.
const BEGINNING: &str = "# HELP walmgr_";

/// Others than walmgr's user read it.
const MODE: u32 = 0o644;

/// Writes the page.
pub(crate) fn write(path: &Path, page: MetricsPage) -> Result<()> {
    refuse_foreign(path)?;
    files::put_new(path, page.prometheus().as_bytes(), MODE)
        .at(Kind::Retry, "write the metrics to", path)
        .map_err(|error| {
            error.hint("give a file in node_exporter's --collector.textfile.directory that this user may write to")
        })
}

/// A mistyped name must not cost anybody a file.
fn refuse_foreign(path: &Path) -> Result<()> {
    let refused = |found: &str| {
        let text = format!(
            "{}: expected a page of metrics or nothing, found {found}",
            path.display()
        );
        Err(CommandError::usage(text).hint("name another file, such as walmgr.prom"))
    };
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at(Kind::Retry, "look at", path),
        Ok(found) if !found.is_file() => refused("what is no file"),
        Ok(_) => {
            let begun = files::read_at_most(path, BEGINNING.len() as u64);
            let begun = begun.at(Kind::Retry, "read", path)?;
            match begun.is_empty() || begun == BEGINNING.as_bytes() {
                true => Ok(()),
                false => refused("another file"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metric, Samples};

    fn page() -> MetricsPage {
        let mut samples = Samples::default();
        samples.flag(Metric::Up, true);
        MetricsPage::of("main", samples)
    }

    #[test]
    fn fault_178_a_page_replaces_a_page_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walmgr.prom");
        for _ in 0..2 {
            write(&path, page()).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains("walmgr_up{cluster=\"main\"} 1"), "{text}");
        }
        let foreign = folder.path().join("master.ini");
        std::fs::write(&foreign, "[walmgr]\n").unwrap();
        let link = folder.path().join("link.prom");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for refused in [&foreign, &link, &folder.path().to_path_buf()] {
            let error = write(refused, page()).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{error}");
        }
        assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "[walmgr]\n");
        let names = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(names.count(), 3, "a temporary was left");
    }
}
