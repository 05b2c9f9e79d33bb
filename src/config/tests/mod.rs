//! Whole files through [`load`], a file a theme.
//! Never touches anything outside a temporary directory. Invariant: every refusal is a configuration
//! error.

mod hosts;
mod loads;
mod refusals;
mod samples;
mod skytools;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{KEYS, Side};
use super::sample::{InitMaster, InitStandby};
use super::*;

fn try_load(text: &str, set: &[(&str, &str)]) -> std::result::Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("main.ini");
    std::fs::write(&path, text).unwrap();
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let overrides: Vec<(String, String)> = set.iter().map(owned).collect();
    load(&path, &overrides).map_err(|error| {
        assert_eq!(error.kind(), Kind::Config);
        error
            .to_string()
            .replace(path.to_str().unwrap(), "main.ini")
    })
}

fn master(text: &str) -> MasterConfig {
    try_load(text, &[]).unwrap().into_master("setup").unwrap()
}

fn standby(text: &str) -> StandbyConfig {
    try_load(text, &[])
        .unwrap()
        .into_standby("receiver")
        .unwrap()
}

fn host(text: &str) -> HostConfig {
    match try_load(text, &[]).unwrap() {
        Config::Host(config) => *config,
        other => panic!("{other:?}"),
    }
}

fn refused(text: &str) -> String {
    try_load(text, &[]).unwrap_err()
}

const MASTER: &str = "[walmgr]\nmaster_data = /data\nslave = localhost\n";
const STANDBY: &str = "[walmgr]\nwalmgr_data = /archive\nslave_data = /data\n";
const HOST: &str = "[walmgr]\nclusters = /clusters.d\n";
