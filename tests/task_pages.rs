//! Pages of docs/tasks, typed as they stand: each line of their blocks, in their order, on a real server and receiver.
//! Never types a line that no page has. Invariant: a line that is added to one of these pages is typed, too, or named
//! here with the reason.

use crate::support::documents::page;
use crate::support::{Cluster, Output, Site};

/// Types the lines of a page, with this site's names for those of the page; says how many.
#[track_caller]
fn typed(site: &Site, name: &str, here: &[(&str, &str)], left_out: &[&str]) -> usize {
    let path = format!("docs/tasks/{name}.md");
    let lines = page(&path).typed_lines();
    let lines: Vec<Vec<String>> = lines.into_iter().map(|line| line.words).collect();
    for left in left_out {
        let is_there = lines.iter().any(|words| words.join(" ") == *left);
        assert!(is_there, "{path} has no line: {left}");
    }
    let mut count = 0;
    for words in lines {
        let line = words.join(" ");
        if left_out.contains(&line.as_str()) {
            continue;
        }
        let replaced = |word: &String| {
            let replace = |word: String, (theirs, ours): &(&str, &str)| word.replace(theirs, ours);
            here.iter().fold(word.clone(), replace)
        };
        let rest: Vec<String> = words[2..].iter().map(replaced).collect();
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        // For cron it stands with its folder.
        let ini = words[1].rsplit('/').next();
        let mut command = match ini {
            Some("master.ini") => site.master_walmgr(&rest),
            Some("standby.ini") => site.standby_walmgr(&rest),
            _ => panic!("{path}: whose file is that: {line}"),
        };
        let ended = Output::of(&mut command);
        assert_eq!(ended.code, Some(0), "{path}: {line}: {ended:?}");
        count += 1;
    }
    count
}

#[test]
fn the_blocks_of_task_pages_can_be_typed_as_they_stand() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = Site::builder().cluster(cluster).build();
    site.master_command(&["setup"]).succeed();
    let old = site.home().join("old").display().to_string();
    let collected = site.home().path().display().to_string();
    // So many sets as it takes to show what the pages say.
    let here = [
        ("data.master.3", "data.master.1"),
        ("data.master.9", "data.master.0"),
        ("/srv/old", old.as_str()),
        ("/var/lib/prometheus/node-exporter", collected.as_str()),
    ];
    let typed = |name: &str, left_out: &[&str]| typed(&site, name, &here, left_out);
    // It is made of a server that replays, which there is none of here.
    let of_a_standby = ["walmgr standby.ini backup"];
    let mut count = 0;
    for _ in 0..3 {
        count = typed("backup", &of_a_standby);
    }
    // The first is typed against a host of several clusters (`clusters::verify`), the second is what that prints.
    let of_a_host = [
        "walmgr host.ini verify",
        "walmgr /etc/walmgr/clusters.d/db2.ini verify",
    ];
    count += typed("verify", &of_a_host);
    for name in ["retention", "compress", "drill", "monitoring"] {
        count += typed(name, &[]);
    }
    assert!(count >= 11, "{count} lines were typed");
    let restored = std::path::Path::new(&old).join("global/pg_control");
    assert!(restored.exists());
}
