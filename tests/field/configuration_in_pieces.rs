//! Masters whose configuration lies in many files: included ones, lists of users, certificates, keys.
//! Never a data directory that has them all. Invariant: each is brought along or named, and what a restored
//! server will not find is named before it starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::load::drain;
use crate::restore::{CONTENT, PATIENCE};
use crate::support::place::give_to_server;
use crate::support::{Cluster, Output, Site, StopMode, TempDir, report_skip, run, wait_for};

/// A master as Debian has them, and more: no file of settings in its data directory.
struct Scene {
    site: Site,
    elsewhere: TempDir,
}

impl Scene {
    fn new(major: u8) -> Scene {
        let elsewhere = TempDir::new();
        let mut cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .start();
        cluster.stop(StopMode::Fast);
        let etc = elsewhere.create_dir("etc");
        take_apart(&mut cluster, &etc);
        let kept = elsewhere.create_dir("kept");
        let conf = etc.join("postgresql.conf");
        let builder = Site::builder()
            .cluster(cluster)
            .master_set("master_config", conf.to_str().unwrap())
            .standby_set("config_backup", kept.to_str().unwrap());
        let site = builder.build();
        site.master_command(&["setup"]).succeed();
        let scene = Scene { site, elsewhere };
        scene.use_tls();
        scene.site.cluster().pgbench(&["-i", "-q", "-s", "1"]);
        scene
    }

    fn etc(&self) -> PathBuf {
        self.elsewhere.join("etc")
    }

    /// Certificate and key in a folder of their own, as `/etc/ssl` is.
    fn use_tls(&self) {
        let keys = self.elsewhere.create_dir("keys");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(keys.join("server.crt"), made.cert.pem()).unwrap();
        let key = keys.join("server.key");
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        give_to_server(&keys);
        let conf = self.etc().join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        let keys = keys.display();
        text.push_str(&format!(
            "\nssl = on\nssl_cert_file = '{keys}/server.crt'\nssl_key_file = '{keys}/server.key'\n"
        ));
        fs::write(&conf, text).unwrap();
        self.site.cluster().reload();
        wait_for("TLS", PATIENCE, || {
            (self.site.cluster().psql("SHOW ssl") == "on").then_some(())
        });
    }

    /// What the warning asks for.
    fn bring_admins(&self, data: &Path) {
        fs::copy(self.etc().join("admins"), data.join("admins")).unwrap();
        give_to_server(&data.join("admins"));
    }

    fn hide_keys(&self, hide: bool) {
        let names = ["keys", "hidden"].map(|name| self.elsewhere.join(name));
        let [from, to] = if hide { [0, 1] } else { [1, 0] };
        fs::rename(&names[from], &names[to]).unwrap();
    }
}

/// Moves the files of settings out of the data directory, and starts the server with them.
fn take_apart(cluster: &mut Cluster, etc: &Path) {
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(cluster.data().join(name), etc.join(name)).unwrap();
    }
    let shared = etc.with_file_name("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("all.conf"), "maintenance_work_mem = 33MB\n").unwrap();
    let folder = etc.join("conf.d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("10-more.conf"), "work_mem = 7MB\n").unwrap();
    fs::write(etc.join("admins"), "postgres\n").unwrap();
    fs::write(
        etc.join("pg_hba.conf"),
        "local all all trust\nhost all @admins 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 trust\n",
    )
    .unwrap();
    let conf = etc.join("postgresql.conf");
    let mut text = fs::read_to_string(&conf).unwrap();
    let (at, data) = (etc.display(), cluster.data().display());
    text.push_str(&format!(
        "\ndata_directory = '{data}'\nhba_file = '{at}/pg_hba.conf'\nident_file = '{at}/pg_ident.conf'\n\
         include_dir 'conf.d'\ninclude '{}/all.conf'\ninclude_if_exists 'never.conf'\n",
        shared.display()
    ));
    fs::write(&conf, text).unwrap();
    give_to_server(etc);
    give_to_server(&shared);
    let mut start = cluster.command("pg_ctl");
    let option = format!("-c config_file={}", conf.display());
    start
        .arg("-D")
        .arg(cluster.data())
        .args(["-w", "-o", &option]);
    start.arg("-l").arg(cluster.home().join("log")).arg("start");
    run(&mut start).unwrap();
}

fn says(output: &Output, parts: &[&str]) {
    for part in parts {
        assert!(output.stderr.contains(part), "{part}: {}", output.stderr);
    }
}

fn has_content(server: &Cluster, content: &str) {
    wait_for("the master's rows", PATIENCE, || {
        (server.try_psql(CONTENT).ok()? == content).then_some(())
    });
    assert_eq!(server.psql("SHOW work_mem"), "7MB");
    assert_eq!(
        server.psql("SHOW data_directory"),
        server.data().display().to_string()
    );
    let hba = server.data().join("pg_hba.conf");
    assert_eq!(server.psql("SHOW hba_file"), hba.display().to_string());
    let rules = server.psql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NULL");
    assert!(rules.parse::<u32>().unwrap() >= 2, "{rules}");
}

fn start_command(server: &Cluster, log: &Path) -> String {
    format!(
        "{}/pg_ctl -D {} -l {} -w start -o '-c port={} -c listen_addresses=127.0.0.1 \
         -c unix_socket_directories={} -c logging_collector=off'",
        server.bin().display(),
        server.data().display(),
        log.display(),
        server.port(),
        server.home().display()
    )
}

fn both_sides(major: u8) {
    let mut scene = Scene::new(major);
    let backup = scene.site.master_command(&["backup"]);
    backup.succeed();
    says(
        &backup,
        &[
            "all.conf (include in",
            "server.crt (ssl_cert_file in",
            "server.key (ssl_key_file in",
            "keys are never backed up",
            "admins is not named *.conf",
        ],
    );
    let kept = scene.elsewhere.join("kept");
    assert!(kept.join("conf.d/10-more.conf").exists());
    let content = scene.site.cluster().psql(CONTENT);
    drain(&scene.site);

    // On the master, where the set brings what lay beside the data directory.
    scene.hide_keys(true);
    let again = scene.site.home().join("again");
    let words = ["restore", "data.master", again.to_str().unwrap()];
    let output = scene.site.master_command(&words);
    output.succeed();
    says(
        &output,
        &[
            "server.crt (ssl_cert_file in",
            "admins (@admins in",
            "include = '",
        ],
    );
    assert!(!output.stdout.contains("has no postgresql.conf"));
    assert!(!again.join("walmgr_config").exists());
    scene.hide_keys(false);
    scene.bring_admins(&again);
    let mut server = Cluster::on_directory(major, &again);
    server.start();
    has_content(&server, &content);
    server.stop(StopMode::Fast);

    // On the standby.
    let data = scene.site.home().join("standby-data");
    let standby = Cluster::on_directory(major, &data);
    let start = start_command(&standby, &scene.site.home().join("standby.log"));
    scene.site.standby_set("slave_data", data.to_str().unwrap());
    scene.site.standby_set("slave_start_cmd", &start);
    scene.hide_keys(true);
    let failed = scene.site.standby_command(&["restore", "data.master"]);
    failed.fail_last(1, "its configuration names files that are missing: ");
    failed.fail_last(1, "server.crt (ssl_cert_file in");
    scene.hide_keys(false);
    scene.bring_admins(&data);
    run(standby.command("/bin/sh").arg("-c").arg(&start)).unwrap();
    has_content(&standby, &content);
}

#[test]
fn fault_135_configuration_in_pieces_is_restored_or_named() {
    for major in crate::support::USUAL {
        match Cluster::available(major) {
            Ok(_) => both_sides(major),
            Err(why) => report_skip(&why),
        }
    }
}
