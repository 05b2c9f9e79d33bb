//! The files and tables that walmgr writes for people.
//! Never leaves the temporary directory. Invariant: what walmgr writes, walmgr loads.

use super::*;

#[test]
fn the_printed_samples_load_and_know_every_setting() {
    let (of_master, of_standby) = (sample::master_sample(), sample::standby_sample());
    assert_eq!(master(&of_master).slave.host, "standby.example");
    assert!(standby(&of_standby).walmgr_data.is_some());
    assert!(try_load(&sample::all_samples(), &[]).is_ok());
    let of_host = sample::host_sample();
    assert_eq!(host(&of_host).clusters, Path::new("/etc/walmgr/clusters.d"));
    for (text, side) in [
        (&of_master, Side::Master),
        (&of_standby, Side::Standby),
        (&of_host, Side::Host),
    ] {
        assert!(
            text.lines()
                .all(|line| !line.starts_with('#') || line.len() <= 120)
        );
        for row in keys::rows(side).filter(|row| row.effect != keys::Effect::Ignored) {
            let line = format!("{} = ", row.name);
            assert!(
                text.lines()
                    .any(|found| found.trim_start_matches('#').starts_with(&line))
            );
        }
    }
}

#[test]
fn the_samples_load_with_every_line_in_force() {
    for text in [
        sample::master_sample(),
        sample::standby_sample(),
        sample::host_sample(),
    ] {
        let active: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        // `slave` and `walmgr_data` name the same base on the standby; both may stand there.
        if let Err(error) = try_load(&active, &[]) {
            panic!("{error}\n{active}");
        }
    }
}

#[test]
fn the_files_that_init_writes_load_to_what_it_was_given() {
    let init = InitMaster {
        pgdata: PathBuf::from("/data/100% full"),
        slave: "db2:7500".to_owned(),
        master_db: Some("port=5433 dbname=postgres".to_owned()),
        restart_example: Some("pg_ctl -D '/data/100% full' restart".to_owned()),
        ..InitMaster::default()
    };
    let text = sample::master_ini(&init).unwrap();
    let config = master(&text);
    assert_eq!((config.master_data, config.slave.port), (init.pgdata, 7500));
    assert_eq!(config.master_db, "port=5433 dbname=postgres");
    assert!(text.lines().count() < 40 && config.notes.is_empty());
    assert!(text.contains("\n#master_restart_cmd = pg_ctl -D '/data/100%% full' restart\n"));

    let init = InitStandby {
        primary_conninfo: Some("host=db1 user=rep".into()),
        walmgr_data: PathBuf::from("/archive"),
        listen: Some("0.0.0.0:7500".to_owned()),
        slave_data: Some(PathBuf::from("/data")),
        slave_bin: None,
        hosted_name: None,
    };
    let text = sample::standby_ini(&init).unwrap();
    assert!(text.contains("\n# Default: authorized_keys beside the ini file.\n"));
    let config = standby(&text);
    assert_eq!(config.completed_wals, Path::new("/archive/logs.complete"));
    assert_eq!(config.listen[0].to_string(), "0.0.0.0:7500");
    assert!(config.notes.is_empty());

    for bad in ["/a\nb", " /a", "/a ;b"] {
        let init = InitMaster {
            pgdata: PathBuf::from(bad),
            slave: "a".to_owned(),
            ..InitMaster::default()
        };
        assert!(sample::master_ini(&init).is_err(), "{bad}");
    }
}

#[test]
fn the_readmes_rows_cover_the_table() {
    let rows = [Side::Master, Side::Standby, Side::Host]
        .map(sample::readme_rows)
        .concat();
    for key in KEYS {
        let row = format!("| `{}` | ", key.name);
        assert!(rows.contains(&row), "{}", key.name);
    }
    assert!(
        rows.lines().all(|line| line.matches(" | ").count() == 3),
        "{rows}"
    );
}
