//! What `listbackups` says of sets that were copied there by hand.
//! Never made by walmgr. Invariant: what nothing says is a dash, and never an error.

use serde_json::Value;

use super::*;

#[test]
fn what_is_unknown_of_a_set_is_a_dash_on_both_sides() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    let set = make_set(&scene.site, "data.master");
    // The manual's columns are what they were.
    let manuals = scene.site.standby_command(&["listbackups"]).succeed();
    let head = manuals.lines().nth(2).unwrap();
    let columns = "Backup set      Timestamp                Label       First WAL";
    assert_eq!(head, columns);
    // No manifest; the history file in the archive says where and when it ended.
    let list = scene.site.listed_sets();
    assert_eq!(list[0]["size_bytes"], Value::Null);
    assert!(list[0]["duration_s"].is_u64(), "{}", list[0]);
    assert!(list[0]["stop_lsn"].is_string(), "{}", list[0]);
    assert_eq!(list[0]["made_on"], "master");
    // No history either, and a label of a standby's backup.
    for name in scene.site.archived_names() {
        if name.ends_with(".backup") {
            fs::remove_file(scene.site.stored_path(name)).unwrap();
        }
    }
    let path = set.join("backup_label");
    let label = fs::read_to_string(&path).unwrap();
    fs::write(&path, label.replace(": primary", ": standby")).unwrap();
    let list = scene.site.listed_sets();
    for name in ["size_bytes", "duration_s", "stop_lsn"] {
        assert_eq!(list[0][name], Value::Null, "{name}");
    }
    assert_eq!(list[0]["made_on"], "standby");
    assert!(list[0]["start_lsn"].is_string(), "{}", list[0]);
    // Half a label.
    fs::write(&path, &label[..label.len() / 2]).unwrap();
    let list = scene.site.listed_sets();
    assert!(list[0]["error"].is_string(), "{}", list[0]);
    assert_eq!(list[0]["made_on"], Value::Null);
    // The last column, whether the set stays, is the standby's to say.
    for (output, unknown) in [
        (scene.site.master_command(&["listbackups", "-v"]), 7),
        (scene.site.standby_command(&["listbackups", "-v"]), 6),
    ] {
        let text = output.succeed();
        let line = text.lines().last().unwrap();
        let dashes = line.split_whitespace().filter(|word| *word == "-").count();
        assert_eq!(dashes, unknown, "{text}");
    }
}
