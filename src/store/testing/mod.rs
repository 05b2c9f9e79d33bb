//! What tests of the archive need: disks that fail, stop or forget, and valid files to store.
//! Never built outside tests. Invariant: every disk here does its work on real directories, so
//! the system calls are the ones production makes.

mod faulty_disk;
mod power_cut;
mod samples;

pub(crate) use faulty_disk::{FaultyDisk, Op};
pub(crate) use power_cut::PowerCutDisk;
pub(crate) use samples::{
    BINDING, Sample, archive_of_names, assert_stored, history_file, names, new_archive, open,
    places, push, real, scratch_folder, segment, stored_bytes,
};
