//! Every setting, one row each: the only place where a name, a default or a bound is written.
//! Never holds logic. Invariant: defaults and examples are values that their own row accepts.

use std::time::Duration;

use walmgr_protocol::limits;

use super::address::{DEFAULT_PORT, METRICS_PORT};
use super::keys::Key;
use super::keys::Shape::{
    BasePath, Boolean, Choice, Command, Fingerprint, Integer, Listen, Name, Path, Size,
    SlaveAddress, Text,
};
use super::keys::Side::{Both, Host, Master, Standby};

/// A time of at least a millisecond: zero would mean "never wait", which no setting here can want.
const fn time(max_seconds: u64) -> super::keys::Shape {
    super::keys::Shape::Duration(Duration::from_millis(1), Duration::from_secs(max_seconds))
}

/// A time that may be none at all.
const fn ages(max_seconds: u64) -> super::keys::Shape {
    super::keys::Shape::Duration(Duration::ZERO, Duration::from_secs(max_seconds))
}

/// Bytes a second. A slower rate is no rate: with 64 streams each would have a block in minutes, and a forgotten unit
/// would make a backup that ends in years.
const RATE: super::keys::Shape = Size(256 << 10, 1 << 40);

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

const fn key(
    name: &'static str,
    side: super::keys::Side,
    shape: super::keys::Shape,
    example: &'static str,
    help: &'static str,
) -> Key {
    Key::new(name, side, shape, example, help)
}

/// Settings of Skytools' framework, which its walmgr took as every script did. They load and mean
/// nothing; those of the last line were known without being set.
#[rustfmt::skip]
pub(super) const FRAMEWORK: &[&str] = &[
    "log_size", "log_count", "skylog_locations", "skylog_name",
    "logfmt_console", "logfmt_file", "logdatefmt_console", "logdatefmt_file",
    "exception_sleep", "exception_quiet", "exception_grace", "exception_reset",
    "connection_lifetime", "sql_retry", "sql_retry_max_count", "sql_retry_max_time",
    "sql_retry_formula_a", "sql_retry_formula_b", "sql_retry_formula_cap",
    "service_name", "host_name", "config_dir", "config_file",
];

/// How the framework's settings end that have a name of their user's before it.
pub(super) const FRAMEWORK_SUFFIX: &str = "_extra_connstr";

/// Those that differ in what they take and store; levels above are too slow for an archiver that waits.
const STORE_COMPRESSIONS: &[&str] = &["zstd", "zstd:1", "zstd:3", "zstd:6", "zstd:9", "none"];

/// The table; samples and manual keep its order.
#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    // Both sides.
    key("job_name", Both, Name, "main", "Name of this job: in its certificate, in BACKUPLOCK, and as %(job_name)s in other values.")
        .derived("the ini file's name without .ini"),
    key("logfile", Master, Path, "/var/log/postgresql/%(job_name)s.log", "Log file, in addition to standard error. Default of syncdaemon -d: the ini file's name with .log."),
    key("logfile", Standby, Path, "/var/log/postgresql/%(job_name)s.log", "Log file, in addition to standard error. Default of receiver -d: the ini file's name with .log."),
    key("pidfile", Master, Path, "/var/run/postgresql/%(job_name)s.pid", "Pid file of syncdaemon, also in the foreground.")
        .derived("the ini file's name with .pid"),
    key("pidfile", Standby, Path, "/var/run/postgresql/%(job_name)s.pid", "Pid file of receiver, also in the foreground.")
        .derived("the ini file's name with .pid"),
    key("logfile", Host, Path, "/var/log/postgresql/%(job_name)s.log", "Log file, in addition to standard error. Default of receiver -d: the ini file's name with .log."),
    key("pidfile", Host, Path, "/var/run/postgresql/%(job_name)s.pid", "Pid file of receiver, also in the foreground.")
        .derived("the ini file's name with .pid"),
    key("use_skylog", Both, Integer(0, 9), "0", "Accepted in old files and ignored: skylog.ini no longer exists.")
        .defaults().ignored(),

    // The master's cluster.
    key("master_db", Master, Text, "dbname=postgres", "Connection string of the master's database, as libpq takes it.")
        .defaults(),
    key("master_data", Master, Path, "/var/lib/postgresql/17/main", "The master's data directory.")
        .required(),
    key("master_config", Master, Path, "/etc/postgresql/17/main/postgresql.conf", "The postgresql.conf that setup and stop edit.")
        .derived("postgresql.conf in `master_data`"),
    key("master_bin", Master, Path, "/usr/lib/postgresql/17/bin", "Directory of PostgreSQL's programs. Commands of these settings find them there, too."),
    key("master_restart_cmd", Master, Command, "pg_ctlcluster 17 main restart", "Restarts the master after archive_mode has changed. Leave it unset to restart the master yourself."),
    key("hot_standby", Master, Boolean, "0", "Accepted in old files. setup raises wal_level to replica, which is enough for hot standbys.")
        .defaults(),

    // The way to the standby.
    key("slave", Master, SlaveAddress, "standby.example:7432", "The standby's receiver. The path of the old form HOST:PATH is ignored.")
        .required(),
    key("slave_fingerprint", Master, Fingerprint, "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "Fingerprint of the receiver's key, as `identity` prints it on the standby.")
        .added(),
    key("connect_timeout", Master, time(HOUR), "10s", "Maximum time to connect, including the TLS handshake.")
        .defaults().added(),
    key("push_timeout", Master, time(DAY), "60s", "Maximum run time of xarchive, from its start to the acknowledgement.")
        .defaults().added(),
    key("compression", Master, Integer(0, limits::ZSTD_LEVEL_MAX as u64), "1", "zstd level of the data on the network, 0 for none. Unset: segments travel as the standby stores them.")
        .clamped(),
    key("block_size", Master, Size(limits::BLOCK_BYTES_MIN as u64, limits::BLOCK_BYTES_MAX as u64), "256kB", "Size of one block on the network.")
        .defaults().added(),
    key("verify_wal", Master, Choice(&["records", "headers", "off"]), "records", "How thoroughly the receiver checks WAL before it acknowledges it.")
        .defaults().added(),
    key("archive_batch", Master, Integer(0, 1_024), "8", "Finished segments that are shipped before the archiver asks for them, also without a syncdaemon. 0: none.")
        .defaults().added(),
    key("archive_jobs", Master, Integer(1, 16), "2", "Number of connections on which segments are shipped ahead.")
        .defaults().added(),

    // The master's commands.
    key("loop_delay", Master, ages(DAY), "10.0", "How often syncdaemon ships. New WAL also starts a pass at once, on average at most one per interval. 0 means 10ms.")
        .defaults(),
    key("use_xlog_functions", Master, Boolean, "0", "Ask the server for its flush position instead of scanning pg_wal.")
        .defaults(),
    key("synchronous", Master, Boolean, "0", "syncdaemon is a standby named job_name, whose disk commits can wait for. Implies use_xlog_functions.")
        .defaults().added(),
    key("synchronous_timeout", Master, ages(DAY), "0", "How long commits wait for a standby that is away, before syncdaemon takes its name out. 0: for ever.")
        .defaults().added(),
    key("slot", Master, Name, "walmgr", "With synchronous: physical replication slot that keeps WAL for the standby. Must exist.")
        .added(),
    key("metrics_listen", Master, Listen(METRICS_PORT), "127.0.0.1:7433", "Addresses on which syncdaemon serves metrics over HTTP, without a password. Unset: nowhere.")
        .added(),
    key("keep_symlinks", Master, Boolean, "1", "Accepted in old files and ignored: it is a setting of the standby.")
        .defaults().ignored(),
    key("command_interval", Master, ages(366 * DAY), "600", "Minimum time between two runs of periodic_command. 0 disables it."),
    key("periodic_command", Master, Command, "/usr/local/bin/copy-crontabs", "Command that periodic runs, and xarchive when command_interval has passed."),
    key("backup_jobs", Master, Integer(1, 64), "4", "Number of parallel streams of a backup.")
        .defaults().added(),
    key("backup_rate", Master, RATE, "20MB", "Maximum bytes per second that a backup reads, over all its streams and before compression.")
        .added(),
    key("backup_checkpoint", Master, Choice(&["fast", "spread"]), "fast", "Kind of the checkpoint at the start of a backup.")
        .defaults().added(),

    // The standby's folders, in the master's file of old.
    key("slave_config", Master, Text, "/etc/walmgr/standby.ini", "Accepted in old files and ignored: the standby's commands have their own ini file.")
        .ignored(),
    key("walmgr_data", Master, Text, "/var/lib/postgresql/walshipping", "Accepted in old files and ignored: it is a setting of the standby.")
        .ignored(),
    key("completed_wals", Master, Text, "%(walmgr_data)s/logs.complete", "Accepted in old files and ignored: it is a setting of the standby.")
        .ignored(),
    key("partial_wals", Master, Text, "%(walmgr_data)s/logs.partial", "Accepted in old files and ignored: it is a setting of the standby.")
        .ignored(),
    key("full_backup", Master, Text, "%(walmgr_data)s/data.master", "Accepted in old files and ignored: it is a setting of the standby.")
        .ignored(),
    key("config_backup", Master, Text, "%(walmgr_data)s/config.backup", "Accepted in old files and ignored: it is a setting of the standby.")
        .ignored(),

    // The standby's folders.
    key("walmgr_data", Standby, Path, "/var/lib/postgresql/walshipping", "Base directory of the archive.")
        .derived("`slave`"),
    key("slave", Standby, BasePath, "/var/lib/postgresql/walshipping", "Old name of walmgr_data."),
    key("completed_wals", Standby, Path, "%(walmgr_data)s/logs.complete", "Directory of finished WAL files and of the control files PAUSE, STOP and BACKUPLOCK.")
        .derived("logs.complete in `walmgr_data`"),
    key("partial_wals", Standby, Path, "%(walmgr_data)s/logs.partial", "Directory of the segments in progress.")
        .derived("logs.partial in `walmgr_data`"),
    key("full_backup", Standby, Path, "%(walmgr_data)s/data.master", "The newest base backup. Older ones have the suffix .0, .1 and so on.")
        .derived("data.master in `walmgr_data`"),
    key("config_backup", Standby, Path, "%(walmgr_data)s/config.backup", "Directory for copies of the master's configuration files."),

    // The standby's receiver.
    key("listen", Standby, Listen(DEFAULT_PORT), "127.0.0.1:7432", "Addresses on which the receiver listens, separated by commas.")
        .defaults().added(),
    key("authorized_keys", Standby, Path, "/etc/walmgr/authorized_keys", "The masters that may connect: one fingerprint and name per line.")
        .derived("authorized_keys beside the ini file").added(),
    key("authorized_names", Standby, Path, "/etc/walmgr/authorized_names", "With tls_ca: the certificates that may connect, one name and its rights per line.")
        .derived("authorized_names beside the ini file").added(),
    key("max_connections", Standby, Integer(1, 10_000), "64", "Maximum number of connections of the receiver.")
        .defaults().added(),
    key("log_format", Standby, Choice(&["text", "json"]), "text", "Format of the receiver's log.")
        .defaults().added(),
    key("audit_log", Standby, Path, "/var/log/postgresql/%(job_name)s.audit", "File that gets a line for each thing done to the archive or its rules, with who did it and how it ended.")
        .added(),
    key("metrics_listen", Standby, Listen(METRICS_PORT), "127.0.0.1:7433", "Addresses on which metrics are served over HTTP, without a password. Unset: nowhere.")
        .added(),

    // The receiver of many clusters, in a file of its own.
    key("clusters", Host, Path, "/etc/walmgr/clusters.d", "Directory of the clusters to serve: each NAME.ini in it is a standby's ini file.")
        .required().added(),
    key("listen", Host, Listen(DEFAULT_PORT), "127.0.0.1:7432", "Addresses on which the receiver listens, separated by commas.")
        .defaults().added(),
    key("max_connections", Host, Integer(1, 10_000), "1024", "Maximum number of connections of the receiver, for all clusters together.")
        .defaults().added(),
    key("log_format", Host, Choice(&["text", "json"]), "text", "Format of the receiver's log.")
        .defaults().added(),
    key("fetch_rate", Host, RATE, "100MB", "Maximum bytes per second that masters fetch of backup sets, of all clusters together. A cluster's own fetch_rate holds within it.")
        .added(),
    key("audit_log", Host, Path, "/var/log/postgresql/%(job_name)s.audit", "File that gets a line for each thing done that belongs to no cluster, or to a cluster without an audit_log.")
        .added(),
    key("metrics_listen", Host, Listen(METRICS_PORT), "127.0.0.1:7433", "Addresses on which metrics are served over HTTP, without a password. Unset: nowhere.")
        .added(),

    // TLS.
    key("tls", Both, Boolean, "on", "Encrypt and authenticate connections. off is accepted on loopback addresses.")
        .defaults().added(),
    key("tls_key", Both, Path, "/etc/walmgr/%(job_name)s.key", "This side's private key, made by `identity`.")
        .derived("the ini file's name with .key").added(),
    key("tls_cert", Both, Path, "/etc/walmgr/%(job_name)s.crt", "This side's certificate, made by `identity`.")
        .derived("the ini file's name with .crt").added(),
    key("tls_ca", Both, Path, "/etc/walmgr/ca.crt", "Certificates of the authority that signs the other side's certificate. Replaces fingerprints.")
        .added(),
    key("allow_plaintext", Both, Boolean, "0", "Permit tls = off on other addresses. Anybody on the network can then read and write the archive.")
        .defaults().added(),

    // The standby's cluster.
    key("slave_data", Standby, Path, "/var/lib/postgresql/17/standby", "The standby's data directory."),
    key("slave_bin", Standby, Path, "/usr/lib/postgresql/17/bin", "Directory of PostgreSQL's programs. Commands of these settings find them there, too."),
    key("promoted_ini", Standby, Path, "/etc/walmgr/master.ini", "A master's ini file for `slave_data`: once open, the restored server archives by it. Unset: it does not.")
        .added(),
    key("slave_config_dir", Standby, Path, "/etc/postgresql/17/standby", "Directory of the standby's configuration files, if it is not the data directory."),
    key("slave_stop_cmd", Standby, Command, "pg_ctlcluster 17 standby stop", "Stops the standby."),
    key("slave_start_cmd", Standby, Command, "pg_ctlcluster 17 standby start", "Starts the standby."),
    key("slave_pg_xlog", Standby, Path, "/wal/17/standby", "Directory for pg_wal of a restored standby, if it is not in the data directory."),
    key("primary_conninfo", Standby, Text, "host=master.example user=replication", "Connection string for streaming replication, as PostgreSQL takes it."),
    key("full_every", Standby, Integer(0, 10_000), "10", "Every so many base backups one is sent in full. 0: only when an older one cannot be built on.")
        .defaults().added(),
    key("keep_backups", Standby, Integer(0, 10_000), "0", "Number of base backups to keep, with the WAL that they need. 0 keeps all.")
        .defaults(),
    key("keep_days", Standby, Integer(0, 36_600), "0", "Number of days of which every instant stays reachable. 0 sets no such rule.")
        .defaults().added(),
    key("keep_weekly", Standby, Integer(0, 5_300), "0", "Number of weeks of which the first base backup stays, without WAL behind it.")
        .defaults().added(),
    key("keep_monthly", Standby, Integer(0, 1_200), "0", "Number of months of which the first base backup stays, without WAL behind it.")
        .defaults().added(),
    key("keep_minimum_age", Standby, ages(366 * DAY), "1d", "A backup removes nothing younger than this. Younger base backups do not count for keep_backups.")
        .defaults().added(),
    key("backup_datadir", Standby, Boolean, "yes", "Keep the standby's old data directory when a backup is restored.")
        .defaults(),
    key("keep_symlinks", Standby, Boolean, "yes", "If pg_wal or log is a symlink in the old data directory, restore keeps the symlink. slave_pg_xlog takes precedence.")
        .defaults(),
    key("archive_command", Standby, Command, "/usr/local/bin/to-tape $BACKUPDIR", "Command to run before the oldest backup is removed. If it fails, the backup stays."),
    key("verify_wal_min", Standby, Choice(&["records", "headers", "off"]), "records", "The least that the receiver checks, whatever verify_wal of the master says.")
        .defaults().added(),
    key("store_compression", Standby, Choice(STORE_COMPRESSIONS), "zstd", "Packs finished WAL segments at this level. zstd is zstd:1.")
        .defaults().added(),
    key("archive_ahead_max", Standby, Integer(1, 1 << 32), "1024", "Maximum distance in segments from a new segment to the WAL before it. Others are set apart.")
        .defaults().added(),
    key("recheck_rate", Standby, Size(0, 1 << 40), "4MB", "Bytes per second that the receiver reads of archive and base backups to find damage. 0 disables this.")
        .defaults().added(),
    key("backup_rate", Standby, RATE, "20MB", "Maximum bytes per second that `backup` reads of the standby's data directory.")
        .added(),
    key("fetch_rate", Standby, RATE, "20MB", "Maximum bytes per second that masters fetch of backup sets, over all connections.")
        .added(),
    key("verify_again_after", Standby, ages(3_660 * DAY), "30d", "verify reads a file again that has not changed since it was found good, if that is longer ago than this.")
        .defaults().added(),
    key("on_corrupt", Standby, Choice(&["stop", "stall"]), "stop", "What xrestore does at a damaged file: stop PostgreSQL, or stall it.")
        .defaults().added(),
    key("drill_directory", Standby, Path, "/srv/drill", "Directory in which drill makes a directory for the restored set, and removes it.")
        .derived("the directory that `full_backup` is in").added(),
    key("drill_sql", Standby, Text, "SELECT count(*) > 0 FROM public.orders", "Query that drill runs in the restored server. It fails on an error, on no row, and if the first value is false or null.")
        .added(),
    key("drill_database", Standby, Text, "postgres", "Database in which drill runs drill_sql.")
        .defaults().added(),
    key("restore_ahead", Both, Integer(0, 64), "4", "Segments that xrestore lays ready in pg_wal/.walmgr while the server replays the ones before them. 0: none.")
        .defaults().added(),
    key("restore_wait", Standby, time(60), "1s", "Maximum time that xrestore waits for a file before it reports that the file is missing.")
        .defaults().added(),
];
