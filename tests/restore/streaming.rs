//! A restored standby that streams from the master, falls back to the archive, and is booted.
//! Never loses what either of the two had.

use super::*;

fn streams(scene: &Scene) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    scene.site.cluster().psql(sql) == "1"
}

#[test]
fn a_hot_standby_streams_falls_back_to_the_archive_and_boots() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let primary = scene.site.cluster().conninfo();
    scene.site.standby_set("primary_conninfo", &primary);
    make_set(&scene.site, "data.master");
    scene.restore(&[]).succeed();
    wait_for("streaming", PATIENCE, || streams(&scene).then_some(()));
    // What no segment switch has brought into the archive yet.
    scene
        .site
        .cluster()
        .psql("CREATE TABLE streamed AS SELECT 1 AS n");
    wait_for("the table", PATIENCE, || {
        scene.standby.try_psql("TABLE streamed").ok()
    });

    // The way to the master is cut: the archive goes on.
    let nowhere = "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'";
    scene.standby.psql(nowhere);
    scene.standby.reload();
    wait_for("the cut", PATIENCE, || (!streams(&scene)).then_some(()));
    scene.work("50");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    let back = format!("ALTER SYSTEM SET primary_conninfo = '{primary}'");
    scene.standby.psql(&back);
    scene.standby.reload();
    wait_for("streaming again", PATIENCE, || {
        streams(&scene).then_some(())
    });

    // The master dies; what was streamed and never archived is there after the boot.
    scene.site.cluster().psql("INSERT INTO streamed VALUES (2)");
    wait_for("the row", PATIENCE, || {
        let answer = scene
            .standby
            .try_psql("SELECT count(*) FROM streamed")
            .ok()?;
        (answer == "2").then_some(())
    });
    scene.site.cluster_mut().stop(StopMode::Immediate);
    scene.boot();
    assert_eq!(scene.standby.psql("SELECT count(*) FROM streamed"), "2");
    assert_eq!(scene.standby.psql(CONTENT), content);

    // The old master is to be the master again: it is refused until the standby is made anew.
    scene.site.cluster_mut().start();
    let refused = scene.site.master_command(&["sync"]);
    refused.fail_last(1, "timeline 1 is frozen: the standby was booted");
    make_set(&scene.site, "data.master");
    scene.restore(&[]).succeed();
    scene.site.master_command(&["sync"]).succeed();
}

/// The set is from before the boot, so the timeline that the boot opened comes from it too.
#[test]
fn fault_79_a_restore_undoes_a_boot_that_was_a_trial() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    make_set(&scene.site, "data.master");
    scene.restore(&["data.master"]).succeed();
    scene.work("20");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene.boot();
    scene.standby.psql("CREATE TABLE trial AS SELECT 1 AS n");

    // The master went on all the time, and its standby is to be one again.
    scene.work("20");
    let content = scene.content();
    assert!(scene.site.holds("BOOT"));
    scene.restore(&["data.master"]).succeed();
    assert!(
        !scene.site.holds("BOOT"),
        "it speaks of a server that is gone"
    );
    scene.wait_until_standby_has(&content);
    scene.work("20");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene.site.master_command(&["sync"]).succeed();
    // It is booted in earnest, on a timeline that the trial did not have.
    scene.boot();
    assert_eq!(scene.standby.psql(CONTENT), content);
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    scene.standby.psql("CHECKPOINT");
    assert_eq!(scene.standby.psql(timeline), "3");
}
