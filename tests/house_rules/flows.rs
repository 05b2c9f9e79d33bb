//! The rule that no flow of the receiver sees another.
//! Never looks at what only tests compile. Invariant: whoever changes a flow reads that flow, what is below it in the
//! table of `src/receiver/mod.rs`, and nothing else.

use super::circles::named_by;
use super::source::Tree;

/// The module of the flows.
const FLOWS: [&str; 2] = ["receiver", "flows"];

/// Its files.
const FOLDER: &str = "src/receiver/flows/";

/// The one who passes each frame to its flow.
const CONNECTION: &str = "src/receiver/connection/";

/// A flow is named by its own files and by the connection.
pub fn see_no_other(tree: &Tree) -> Vec<String> {
    let sources = tree.rust().filter(|source| {
        let path = source.path.as_str();
        path.starts_with("src/") && !path.starts_with(CONNECTION)
    });
    let mut violations = Vec::new();
    for source in sources {
        for (position, path) in named_by(source) {
            let Some(named) = path.strip_prefix(&FLOWS.map(str::to_owned)) else {
                continue;
            };
            // Whoever names the module of all flows gets at each of them.
            let flow = named.first().map_or("flows", String::as_str);
            let behind = source.path.strip_prefix(&format!("{FOLDER}{flow}"));
            if !behind.is_some_and(|behind| behind.starts_with(['/', '.'])) {
                let place = format!("{}:{}", source.path, source.line_at(position));
                violations.push(format!(
                    "{place}: only {FOLDER}{flow} and {CONNECTION} may name `{flow}`"
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::planted::{assert_allowed, assert_caught};
    use super::*;

    #[test]
    fn a_flow_that_sees_another_is_caught() {
        for (path, text) in [
            (
                "src/receiver/flows/trial/work.rs",
                "use crate::receiver::flows::push::work::all_taken;",
            ),
            (
                "src/receiver/flows/trial/work.rs",
                "use super::super::push::{PushFlow};",
            ),
            (
                "src/receiver/flows/control/mod.rs",
                "fn f() { super::fetch::send::start(); }",
            ),
            (
                "src/receiver/flows/control/mod.rs",
                "use crate::{error::Result, receiver::flows::{control, push}};",
            ),
            ("src/receiver/flows/pushed.rs", "use super::push::work;"),
            (
                "src/receiver/cluster.rs",
                "use crate::receiver::flows::push::work;",
            ),
            (
                "src/receiver/flows/trial/mod.rs",
                "use crate::receiver::flows;",
            ),
        ] {
            assert_caught(see_no_other, path, text);
        }
        for (path, text) in [
            (
                "src/receiver/flows/push/mod.rs",
                "use crate::receiver::flows::push::work; use super::push;",
            ),
            (
                "src/receiver/flows/push/work.rs",
                "use super::PushFlow; use crate::receiver::shares;",
            ),
            (
                "src/receiver/connection/flow.rs",
                "use crate::receiver::flows::push::PushFlow;",
            ),
            (
                "src/receiver/flows/trial/work.rs",
                "// crate::receiver::flows::push",
            ),
            (
                "src/receiver/cluster.rs",
                "#[cfg(test)]\nmod tests { use crate::receiver::flows::push; }",
            ),
        ] {
            assert_allowed(see_no_other, path, text);
        }
    }
}
