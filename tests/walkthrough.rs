//! The walkthrough of walmgr 3 on PostgreSQL 15: its commands, in its order, with its two ini files.
//! Never changes more of the files than paths, ports, the version, `slave`, and the lines that the
//! identities need. Invariant: each command gives the result that the walkthrough shows.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::place::{give_to_server, walmgr};
use crate::support::receiver::Receiver;
use crate::support::{Cluster, Output, TempDir, free_port, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const MASTER_INI: &str = include_str!("../src/config/testdata/walkthrough-master.ini");
const STANDBY_INI: &str = include_str!("../src/config/testdata/walkthrough-standby.ini");

/// What Debian's program of this name does with the servers below `home`.
const PG_CTLCLUSTER: &str = r#"#!/bin/sh
exec BIN/pg_ctl -D "HOME/lib/$1/$2" -l "HOME/log/postgresql-$1-$2.log" \
    -o "-c config_file=HOME/etc/postgresql/$1/$2/postgresql.conf" -m fast -w "$3"
"#;

/// The machine of the walkthrough, below one folder: `/etc`, `/var/lib/postgresql`, `/var/log`.
struct Machine {
    receiver: Receiver,
    /// These end what the commands started.
    main: Cluster,
    _standby: Cluster,
    main_port: u16,
    standby_port: u16,
    receiver_port: u16,
    home: TempDir,
}

impl Machine {
    fn new() -> Machine {
        let home = TempDir::new();
        for folder in [
            "bin",
            "etc",
            "etc/postgresql",
            "etc/postgresql/15",
            "lib",
            "lib/15",
            "log",
            "run",
        ] {
            home.create_dir(folder);
        }
        // mkdir -p /etc/walshipping/9.1/main /var/lib/postgresql/walshipping
        for folder in ["etc/walshipping", "lib/walshipping"] {
            home.create_dir(folder);
        }
        home.create_dir("etc/walshipping/15");
        let ini = home.create_dir("etc/walshipping/15/main");
        let machine = Machine {
            receiver: Receiver::new(ini.join("receiver.log")),
            main: Cluster::on_directory(15, &home.join("lib/15/main")),
            _standby: Cluster::on_directory(15, &home.join("lib/15/standby")),
            main_port: free_port(),
            standby_port: free_port(),
            receiver_port: free_port(),
            home,
        };
        let script = PG_CTLCLUSTER
            .replace("BIN", &machine.main.bin().display().to_string())
            .replace("HOME", &machine.home.path().display().to_string());
        let program = machine.home.write("bin/pg_ctlcluster", script);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(program, mode).unwrap();
        machine
    }

    /// A cluster as Debian makes them, with its configuration below `etc`; started.
    fn create_cluster(&self, name: &str, port: u16, settings: &str) {
        let data = self.home.join("lib/15").join(name);
        let config = self.home.create_dir(&format!("etc/postgresql/15/{name}"));
        let mut initdb = self.main.command("initdb");
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"]);
        run(initdb.arg(&data)).unwrap();
        for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            fs::rename(data.join(file), config.join(file)).unwrap();
        }
        let own = format!(
            "data_directory = '{}'\nhba_file = '{config}/pg_hba.conf'\n\
             ident_file = '{config}/pg_ident.conf'\nport = {port}\n\
             unix_socket_directories = '{}'\nfsync = off\nshared_buffers = 16MB\n{settings}",
            data.display(),
            self.home.join("run").display(),
            config = config.display(),
        );
        let main_file = config.join("postgresql.conf");
        let text = fs::read_to_string(&main_file).unwrap() + &own;
        fs::write(&main_file, text).unwrap();
        give_to_server(&config);
        run(self.shell("pg_ctlcluster").args(["15", name, "start"])).unwrap();
    }

    /// The walkthrough's text with the paths and ports of this machine.
    fn adapted(&self, ini: &str) -> String {
        let home = self.home.path().display();
        ini.replace("/usr/lib/postgresql/9.1/bin", "BIN")
            .replace("/var/lib/postgresql", &format!("{home}/lib"))
            .replace("/var/log/postgresql", &format!("{home}/log"))
            .replace("/var/run/postgresql", &format!("{home}/run"))
            .replace("= /etc/", &format!("= {home}/etc/"))
            .replace("BIN", &self.main.bin().display().to_string())
            .replace("9.1", "15")
            .replace("5434", &self.main_port.to_string())
    }

    fn master_ini(&self) -> PathBuf {
        self.home.join("master.ini")
    }

    fn standby_ini(&self) -> PathBuf {
        self.home.join("etc/walshipping/15/main/standby.ini")
    }

    /// A command as the user postgres would type it, in its home.
    fn shell(&self, program: &str) -> Command {
        self.at_home(
            self.main
                .command(self.home.join("bin").join(program).to_str().unwrap()),
        )
    }

    fn at_home(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env(
                "PATH",
                format!("{}:{path}", self.home.join("bin").display()),
            )
            // Where Debian's libpq looks without being told.
            .env("PGHOST", self.home.join("run"))
            .env("PGUSER", "postgres")
            .env_remove("PGPORT")
            .env_remove("PGDATABASE")
            .env_remove("PGDATA")
            .current_dir(self.home.path());
        command
    }

    fn walmgr(&self, words: &[&str]) -> Command {
        let mut command = self.at_home(walmgr());
        command.args(words);
        command
    }

    /// `walmgr INI WORDS`, with the ini file's path spelt as the walkthrough does.
    fn type_in(&self, words: &[&str]) -> Output {
        Output::of(&mut self.walmgr(words))
    }

    fn standby(&self, words: &[&str]) -> Output {
        let ini = self.standby_ini();
        self.type_in(&[&[ini.to_str().unwrap()], words].concat())
    }

    fn ask(&self, port: u16, sql: &str) -> Result<String, String> {
        let mut psql = self.at_home(self.main.command("psql"));
        psql.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "postgres",
        ]);
        psql.args(["-p", &port.to_string(), "-c", sql]);
        run(&mut psql).map(|answer| answer.trim_end().to_owned())
    }

    fn ask_main(&self, sql: &str) -> String {
        self.ask(self.main_port, sql).unwrap()
    }

    fn wait_for_standby(&self, sql: &str, expected: &str) {
        wait_for(sql, PATIENCE, || {
            (self.ask(self.standby_port, sql).ok()? == expected).then_some(())
        });
    }
}

/// What is new: two identities that know each other, and a daemon instead of ssh.
fn introduce(machine: &mut Machine) {
    let fingerprint = machine.standby(&["identity"]).succeed();
    let mut ini = fs::read_to_string(machine.master_ini()).unwrap();
    ini = ini.replace(
        "slave = 127.0.0.1\n",
        &format!("slave = 127.0.0.1:{}\n", machine.receiver_port),
    );
    ini.push_str(&format!("slave_fingerprint = {fingerprint}\n"));
    fs::write(machine.master_ini(), ini).unwrap();
    let mut ini = fs::read_to_string(machine.standby_ini()).unwrap();
    ini.push_str(&format!("listen = 127.0.0.1:{}\n", machine.receiver_port));
    fs::write(machine.standby_ini(), ini).unwrap();
    let fingerprint = machine.type_in(&["master.ini", "identity"]).succeed();
    machine
        .standby(&["authorize", &fingerprint, "main"])
        .succeed();
    machine.standby(&["setup"]).succeed();
    let ini = machine.standby_ini();
    let mut receiver = machine.walmgr(&[ini.to_str().unwrap(), "receiver"]);
    machine.receiver.start(&mut receiver).unwrap();
}

/// The table, column by column at the walkthrough's widths.
fn assert_listed(machine: &Machine, listed: &str) {
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "List of backups:",
            "",
            "Backup set      Timestamp                Label       First WAL",
            "--------------- ------------------------ ----------- ------------------------",
        ]
    );
    let [row] = lines[4..] else {
        panic!("{listed}");
    };
    let cell = |from: usize, to: usize| row.get(from..to).unwrap_or_default().trim_end();
    assert_eq!((cell(0, 16), cell(41, 53)), ("data.master", "FullBackup"));
    let shape = |letter: char| if letter.is_ascii_digit() { '9' } else { letter };
    let timestamp: String = cell(16, 41).chars().map(shape).collect();
    assert!(timestamp.starts_with("9999-99-99 99:99:99 "), "{row}");
    let first = &row[53..];
    assert!(first.starts_with("00000001") && first.len() == 24, "{row}");
    let archived = machine.home.join("lib/walshipping/15/main/logs.complete");
    assert!(
        crate::support::stored::path(&archived, first).exists(),
        "{row}"
    );
}

const CONTENT: &str = "SELECT count(*), sum(n) FROM shipped";

#[test]
fn the_walkthroughs_commands_give_its_results_with_its_ini_files() {
    skip_unless!(Cluster::available(15));
    let mut machine = Machine::new();
    let editing = "max_wal_senders = 1\nwal_level = 'hot_standby'\narchive_mode = 'off'\narchive_command = ''\n";
    machine.create_cluster("main", machine.main_port, editing);
    machine.create_cluster("standby", machine.standby_port, "");
    let master_ini = machine.adapted(MASTER_INI);
    machine.home.write("master.ini", master_ini);
    let standby_ini = machine.adapted(STANDBY_INI);
    machine.home.write("standby.ini", standby_ini);
    // cp standby.ini /etc/walshipping/9.1/main/
    fs::copy(machine.home.join("standby.ini"), machine.standby_ini()).unwrap();
    give_to_server(&machine.standby_ini());
    introduce(&mut machine);

    machine.type_in(&["-v", "master.ini", "setup"]).succeed();
    let started = machine.ask_main("SELECT pg_postmaster_start_time() > now() - interval '1 min'");
    assert_eq!(started, "t");
    assert_eq!(machine.ask_main("SHOW archive_mode"), "on");
    let command = machine.ask_main("SHOW archive_command");
    assert!(command.ends_with("master.ini xarchive %p %f"), "{command}");

    machine.ask_main("CREATE TABLE shipped AS SELECT n FROM generate_series(1, 1000) AS n");
    let said = machine.type_in(&["master.ini", "backup"]).succeed();
    assert!(said.contains("data.master is sealed"), "{said}");

    let listed = machine.standby(&["listbackups"]).succeed();
    assert_listed(&machine, &listed);
    // Both sides print the same.
    assert_eq!(
        machine.type_in(&["master.ini", "listbackups"]).succeed(),
        listed
    );

    restore_replay_boot(&machine);
}

/// What the walkthrough's next articles do: the standby fed by streaming, and by the archive.
fn restore_replay_boot(machine: &Machine) {
    machine.standby(&["restore"]).succeed();
    let none = machine.standby(&["listbackups"]).succeed();
    assert_eq!(none, "There are no backups.");
    machine.wait_for_standby("SELECT pg_is_in_recovery()", "t");
    machine.wait_for_standby("SHOW archive_mode", "off");
    let config = machine
        .home
        .join("etc/postgresql/15/standby/postgresql.conf");
    machine.wait_for_standby("SHOW config_file", config.to_str().unwrap());
    let data = machine.home.join("lib/15/standby");
    machine.wait_for_standby("SHOW data_directory", data.to_str().unwrap());
    // backup_datadir = no
    assert!(!data.with_extension("1").exists());
    machine.wait_for_standby("SELECT status FROM pg_stat_wal_receiver", "streaming");
    machine.ask_main("INSERT INTO shipped VALUES (2000)");
    machine.wait_for_standby(CONTENT, &machine.ask_main(CONTENT));

    // Between streaming and the archive, back and forth.
    machine.standby(&["pause"]).succeed();
    stop_streaming(machine);
    machine.ask_main("INSERT INTO shipped VALUES (3000)");
    machine.ask_main("SELECT pg_switch_wal()");
    let content = machine.ask_main(CONTENT);
    std::thread::sleep(Duration::from_secs(2));
    assert_ne!(machine.ask(machine.standby_port, CONTENT).unwrap(), content);
    machine.standby(&["continue"]).succeed();
    machine.wait_for_standby(CONTENT, &content);
    allow_streaming(machine);
    machine.ask_main("INSERT INTO shipped VALUES (4000)");
    let content = machine.ask_main(CONTENT);
    machine.wait_for_standby(CONTENT, &content);

    let said = machine.standby(&["boot"]).succeed();
    assert!(said.contains("open on timeline 2"), "{said}");
    machine.wait_for_standby("SELECT pg_is_in_recovery()", "f");
    assert_eq!(machine.ask(machine.standby_port, CONTENT).unwrap(), content);
}

/// Nobody may replicate any longer, and who does is sent away.
fn stop_streaming(machine: &Machine) {
    let hba = machine.home.join("etc/postgresql/15/main/pg_hba.conf");
    let text = fs::read_to_string(&hba).unwrap();
    let kept = text.lines().filter(|line| !line.contains("replication"));
    let rest: String = kept.map(|line| format!("{line}\n")).collect();
    fs::write(hba.with_extension("all"), &text).unwrap();
    fs::write(&hba, rest).unwrap();
    machine.ask_main("SELECT pg_reload_conf()");
    wait_for("the end of streaming", PATIENCE, || {
        machine.ask_main("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
        let streams = machine.ask(
            machine.standby_port,
            "SELECT count(*) FROM pg_stat_wal_receiver",
        );
        (streams.ok()? == "0").then_some(())
    });
}

fn allow_streaming(machine: &Machine) {
    let hba = machine.home.join("etc/postgresql/15/main/pg_hba.conf");
    fs::copy(hba.with_extension("all"), &hba).unwrap();
    machine.ask_main("SELECT pg_reload_conf()");
    machine.wait_for_standby("SELECT status FROM pg_stat_wal_receiver", "streaming");
}
