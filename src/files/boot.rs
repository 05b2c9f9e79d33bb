//! What tells one boot of the kernel from another: what was not synced is worth nothing after a power cut.
//! Never fails. Invariant: nothing that is written under an empty word counts as of this boot.

use std::sync::OnceLock;

/// Length of the kernel's word for it.
pub(crate) const BOOT_BYTES: usize = 36;

/// Tells this boot of the kernel from every other one; empty where nothing does.
pub(crate) fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let told = super::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let told = String::from_utf8(told)
            .unwrap_or_default()
            .trim()
            .to_owned();
        let is_sound = told.len() == BOOT_BYTES && told.bytes().all(|byte| byte.is_ascii_graphic());
        if is_sound { told } else { String::new() }
    })
}
