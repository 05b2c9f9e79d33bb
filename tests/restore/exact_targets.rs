//! Recoveries that end just before something, or at the end of the backup, and what the commands say of them.
//! Never asks walmgr where a target lies: the master says so. Invariant: both sides refuse in the same words, and
//! what a refusal shows can be typed.

use super::targets::{Mark, Story};
use super::*;

/// A recovery and how many marks it brings back.
type Ending<'a> = (Vec<&'a str>, usize);

fn time_of(mark: &Mark) -> String {
    format!("{}+00", mark.time)
}

/// Words without the last one, which is how a target is typed that ends behind it.
fn before<'a>(option: &'a str, value: &'a str) -> Vec<&'a str> {
    vec![option, value, "--target-exclusive"]
}

fn each_ends_where_it_should(major: u8) {
    let story = Story::new(major);
    let (seventh, last) = (&story.marks[7], &story.marks[9]);
    let (time, last_time) = (time_of(seventh), time_of(last));
    let endings: Vec<Ending<'_>> = vec![
        (before("--target-xid", &seventh.xid), 7),
        (before("--target-lsn", &seventh.before), 7),
        (before("--target-lsn", &seventh.behind), 8),
        (before("--target-time", &time), 7),
        (before("--target-time", &last_time), 9),
        (before("--target-xid", &last.xid), 9),
        (vec!["--target-xid", &last.xid], 10),
        // Six marks are in the newer set, two in the older one.
        (vec!["--target-immediate"], 6),
        (vec!["data.master.0", "--target-immediate"], 2),
    ];
    for (words, expected) in endings {
        assert_eq!(story.recover(&words), expected, "{major}: {words:?}");
    }
}

#[test]
fn fault_169_targets_end_before_or_behind_what_they_name_on_15() {
    skip_unless!(Cluster::available(15));
    each_ends_where_it_should(15);
}

#[test]
fn fault_169_targets_end_before_or_behind_what_they_name_on_18() {
    skip_unless!(Cluster::available(18));
    each_ends_where_it_should(18);
}

#[test]
fn fault_169_every_command_says_that_a_server_waits_at_its_target() {
    skip_unless!(Cluster::available(15));
    let story = Story::new(15);
    let scene = &story.scene;
    let standby = |words: &[&str]| scene.site.standby_command(words);
    let status = || {
        let output = standby(&["status"]);
        assert_ne!(output.code, Some(2), "{}\n{}", output.stdout, output.stderr);
        output.stdout
    };
    scene.restore(&["--target-immediate"]).succeed();
    wait_for("the pause", PATIENCE, || {
        let state = "SELECT pg_get_wal_replay_pause_state()";
        (scene.standby.try_psql(state).ok()? == "paused").then_some(())
    });
    assert_eq!(scene.standby.psql("SELECT count(*) FROM marks"), "6");
    assert!(status().contains("has reached the target"), "{}", status());
    for (words, part) in [
        ("continue", "there was no PAUSE; the server in "),
        ("pause", "replay is paused; the server in "),
        ("continue", "PAUSE is gone, and replay does not go on; "),
    ] {
        let output = standby(&[words]);
        output.succeed();
        assert!(output.stderr.contains(part), "{words}: {}", output.stderr);
        assert!(output.stderr.contains("`boot` opens it"), "{words}");
    }
    scene.boot();
    assert_eq!(scene.standby.psql("SELECT count(*) FROM marks"), "6");
    scene.standby.psql("INSERT INTO marks VALUES (100)");
}

#[test]
fn fault_169_a_server_shut_down_before_its_target_is_no_alarm_and_opens() {
    skip_unless!(Cluster::available(15));
    let story = Story::new(15);
    let scene = &story.scene;
    let mut words = before("--target-xid", &story.marks[7].xid);
    words.extend(["--target-action", "shutdown"]);
    // The start command sees a server that ends again.
    let _ = scene
        .site
        .standby_command(&[&["restore"], &words[..]].concat());
    wait_for("the end of the server", PATIENCE, || {
        (!scene.data().join("postmaster.pid").exists()).then_some(())
    });
    let output = scene.site.standby_command(&["status"]);
    let text = &output.stdout;
    assert_ne!(output.code, Some(2), "{text}");
    assert!(text.contains("its recovery ends at a target"), "{text}");
    let output = scene.site.standby_command(&["pause"]);
    output.succeed();
    assert!(
        output.stderr.contains("`boot` starts it"),
        "{}",
        output.stderr
    );
    scene.site.standby_command(&["continue"]).succeed();
    scene.boot();
    assert_eq!(scene.standby.psql("SELECT count(*) FROM marks"), "7");
}

/// What both sides say of a restore of this set to this target; it is the same.
#[track_caller]
fn refused(story: &Story, set: &str, words: &[&str]) -> String {
    let site = &story.scene.site;
    let place = site.home().join("again");
    let restore = ["restore", set, place.to_str().unwrap()];
    let words = [&restore[..], words].concat();
    let (master, standby) = (site.master_command(&words), site.standby_command(&words));
    let line = standby.fail(1);
    let [master_ini, standby_ini] =
        [site.master_ini(), site.standby_ini()].map(|ini| ini.display().to_string());
    assert_eq!(master.fail(1).replace(&master_ini, &standby_ini), line);
    assert!(line.contains("nothing was changed"), "{line}");
    assert!(!place.exists(), "{line}");
    line.to_owned()
}

#[test]
fn fault_169_both_sides_refuse_alike_and_name_the_set_that_gets_there() {
    skip_unless!(Cluster::available(15));
    let story = Story::new(15);
    let (third, last) = (&story.marks[3], &story.marks[9]);
    let (third_time, last_time) = (time_of(third), time_of(last));
    // Only the older set gets there.
    for (words, set) in [
        (vec!["--target-xid", &third.xid], "data.master.0"),
        (vec!["--target-lsn", &third.behind], "data.master.0"),
        (vec!["--target-time", &third_time], "data.master.0"),
        (vec!["--target-name", "'after 3'"], "data.master.0"),
        (before("--target-xid", &third.xid), "data.master.0"),
        (before("--target-lsn", &third.before), "data.master.0"),
        (before("--target-time", &third_time), "data.master.0"),
    ] {
        let typed: Vec<&str> = words.iter().map(|word| word.trim_matches('\'')).collect();
        let line = refused(&story, "data.master", &typed);
        let shown = format!("restore {set} ");
        let command = line.split('`').find(|part| part.contains(&shown));
        let command = command.unwrap_or_else(|| panic!("{line}"));
        for word in words {
            let word = word.trim_matches('\'');
            assert!(command.contains(word), "{word}: {line}");
        }
        assert!(line.contains("gets to the target"), "{line}");
        assert_works(&story.scene, command);
    }
    // No set does.
    let first = &story.marks[0];
    for words in [
        vec!["--target-xid", "4000000000"],
        vec!["--target-xid", &first.xid],
        vec!["--target-name", "never"],
        vec!["--target-lsn", &first.before],
        vec!["--target-time", "2001-01-01 00:00:00Z"],
        vec!["--target-time", &last_time],
        before("--target-time", "2100-01-01 00:00:00Z"),
        before("--target-xid", "4000000000"),
        before("--target-lsn", "F/0"),
    ] {
        let line = refused(&story, "data.master", &words);
        assert!(line.contains("is out of reach: "), "{line}");
        assert!(!line.contains("gets to the target"), "{line}");
        let has_exclusive = words.contains(&"--target-exclusive");
        assert_eq!(line.contains("just before "), has_exclusive, "{line}");
        for command in line.split('`').skip(1).step_by(2) {
            assert_works(&story.scene, command);
        }
    }
    let line = refused(&story, "data.master", &["--target-timeline", "7"]);
    assert!(line.contains("another --target-timeline"), "{line}");
    // Neither does where the WAL of the backup itself is gone.
    let set = set_path(&story.scene.site, "data.master");
    let label = fs::read_to_string(set.join("backup_label")).unwrap();
    let (_, segment) = label.split_once("(file ").unwrap();
    let segment = story.scene.site.unpacked_path(&segment[..24]);
    fs::remove_file(segment).unwrap();
    let line = refused(&story, "data.master", &["--target-immediate"]);
    assert!(line.contains("the end of the backup, "), "{line}");
    assert!(line.contains("choose another set"), "{line}");
}

/// A command that a refusal shows does what it says, in a rehearsal.
#[track_caller]
fn assert_works(scene: &Scene, command: &str) {
    let mut shell = scene.standby.command("/bin/sh");
    let folder = crate::support::walmgr_binary().parent().unwrap();
    let rehearsed = command.replacen("walmgr ", "walmgr -n ", 1);
    shell.env("PATH", folder).arg("-c").arg(&rehearsed);
    let output = Output::of(&mut shell);
    assert_eq!(output.code, Some(0), "{command}: {}", output.stderr);
}

#[test]
fn fault_169_what_cannot_end_just_before_itself_is_refused() {
    skip_unless!(Cluster::available(15));
    let site = Site::builder().build();
    for (words, part) in [
        (
            &["--target-name", "x", "--target-exclusive"][..],
            "does not go with --target-name",
        ),
        (
            &["--target-immediate", "--target-exclusive"],
            "does not go with --target-immediate",
        ),
        (&["--target-exclusive"], "without the target"),
        (&["--target-immediate", "--target-xid", "7"], "--target-"),
        (&["--target-timeline", "2", "--target-exclusive"], "without"),
    ] {
        let words = [&["restore", "data.master", "/nowhere/dst"], words].concat();
        for output in [site.master_command(&words), site.standby_command(&words)] {
            let line = output.fail(2);
            assert!(line.contains(part), "{part:?}: {line}");
        }
    }
}
