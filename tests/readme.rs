//! What the README promises about settings, against the program's own table.
//! Never edits it. Invariant: a setting that exists is described there, and nothing else is.

use std::path::Path;

use walmgr::config::keys::Side;
use walmgr::config::sample::readme_rows;

const HEAD: &str = "| setting | value | default | meaning |\n|---|---|---|---|\n";

#[test]
fn the_readme_describes_every_setting() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (title, side) in [("Master", Side::Master), ("Standby", Side::Standby)] {
        let section = format!("### {title}\n\n{HEAD}{}\n", readme_rows(side));
        assert!(
            text.contains(&section),
            "the README's table of the {title} has to be:\n\n{section}"
        );
    }
}
