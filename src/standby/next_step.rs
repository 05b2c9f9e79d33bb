//! What is typed next, behind each command of the first day on the standby: the lines of the guide, with what is known here.
//! Never decides whether a command worked, and never fails it. Invariant: a line can be pasted as it is, but for a name that
//! only the other host knows.

use std::path::Path;
use std::sync::Arc;

use crate::config::address::ListenAddress;
use crate::config::{DEFAULT_PORT, HostConfig, StandbyConfig, TlsSettings, packaged};
use crate::daemon;
use crate::error::Result;
use crate::output;
use crate::standby::hosted;
use crate::store::{ArchiveReader, RealDisk};
use crate::transport::authorized_keys::AuthorizedKeys;
use crate::transport::identity::{Fingerprint, Identity};

/// Behind `setup`: the receiver, unless it runs, and the master's first line, unless somebody may connect.
pub(super) fn after_setup(config: &StandbyConfig) -> Result<()> {
    let host = hosted::host_of(config)?;
    let mut text = start_line(config, host.as_ref())?
        .map(|line| format!("Type here:\n\n    {line}\n"))
        .unwrap_or_default();
    let (tls, listen) = match &host {
        Some(host) => (&host.tls, &host.listen),
        None => (&config.tls, &config.listen),
    };
    // Without a key `identity` or the receiver makes it, and who looks for it there finds the line.
    let identity = Identity::load(&tls.key, &tls.certificate).ok();
    if let Some(identity) = identity.filter(|_| nobody_may_connect(config, tls)) {
        text += on_the_master(&text);
        let line = master_init(&config.path, listen, &identity.fingerprint());
        text += &format!(", with --pgdata DIR if it has several clusters:\n\n    {line}\n");
    }
    tell(&text)
}

/// Behind `authorize` of a key that may archive: what the master types, unless it did before.
pub(super) fn after_authorize(config: &StandbyConfig, may_push: bool) -> Result<()> {
    let host = hosted::host_of(config)?;
    let mut text = start_line(config, host.as_ref())?
        .map(|line| format!("The receiver does not run. Type here:\n\n    {line}\n"))
        .unwrap_or_default();
    let bound = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)).is_ok();
    if may_push && !bound {
        let before = packaged::typed_by_root_before(&config.path);
        let ini = sibling(&config.path);
        text += on_the_master(&text);
        text += &format!(
            " (it restarts PostgreSQL if archiving was off; without --restart you do):\n\n    \
             {before}walmgr {ini} setup --restart\n"
        );
    }
    tell(&text)
}

/// The master's `init`, with the address and the key of this side.
pub(super) fn master_init(
    ini: &Path,
    listen: &[ListenAddress],
    fingerprint: &Fingerprint,
) -> String {
    format!(
        "{}walmgr {} init --slave {}:{} --slave-fingerprint {fingerprint}",
        packaged::typed_before(ini),
        sibling(ini),
        own_name(listen),
        listen.first().map_or(DEFAULT_PORT, |at| at.port),
    )
}

const fn on_the_master(before: &str) -> &'static str {
    match before.is_empty() {
        true => "Type on the master",
        false => "\nand on the master",
    }
}

fn tell(text: &str) -> Result<()> {
    match text.trim_end() {
        "" => Ok(()),
        text => output::print(text),
    }
}

/// What starts the receiver of this file, or has its host's take it on; `None` if it runs.
fn start_line(config: &StandbyConfig, host: Option<&HostConfig>) -> Result<Option<String>> {
    if daemon::is_running(&config.receiver_pidfile())? {
        return Ok(None);
    }
    Ok(Some(match host {
        None => packaged::starting("receiver", &config.path),
        Some(host) if daemon::is_running(&host.receiver_pidfile())? => {
            format!("walmgr {} receiver --reload", host.path.display())
        }
        Some(host) => packaged::starting("receiver", &host.path),
    }))
}

/// By name nobody is listed who is not known, so this is about keys alone.
fn nobody_may_connect(config: &StandbyConfig, tls: &TlsSettings) -> bool {
    let by_key = tls.enabled && tls.authority.is_none();
    by_key
        && AuthorizedKeys::load(&config.authorized_keys)
            .is_ok_and(|keys| keys.keys().next().is_none())
}

/// The master's file by the name that the guide gives it.
fn sibling(ini: &Path) -> &'static str {
    match packaged::is_packaged(ini) {
        true => "/etc/walmgr/master.ini",
        false => "master.ini",
    }
}

/// What the master calls this host, unless only this host reaches the receiver.
fn own_name(listen: &[ListenAddress]) -> String {
    if listen.iter().all(ListenAddress::is_loopback) {
        return "127.0.0.1".to_owned();
    }
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
