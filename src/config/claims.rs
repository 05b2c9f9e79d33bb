//! What each cluster's file of a folder claims on the disk, against what those before it in the order of names have.
//! Never resolves a path here, and never compares every pair of files. Invariant: of two files that claim one place the
//! later is refused, and a file that is refused claims nothing but what its cluster has in force.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::{Fault, SettingPlace};
use super::host::HostConfig;
use super::overlap::{Named, is_rotated_suffix};
use crate::files;

/// What one file wants for itself.
#[derive(Debug, Default)]
pub(crate) struct WantedPaths {
    /// Directories that nothing else may be, lie in, or hold.
    pub(super) directories: Vec<Named>,
    /// Those of them that are moved aside, under names like their own.
    pub(super) rotated: Vec<Named>,
    /// Files of its own.
    pub(super) files: Vec<Named>,
    /// Files that several may name, though not for different things.
    pub(super) shared_files: Vec<Named>,
    /// The list of those who are let in, if there is one in force: several have one only if each says so.
    pub(super) let_in: Option<Named>,
    /// Where all of that leads to, once it has been found.
    pub(super) found: FoundPlaces,
    /// Where what nobody else may have leads to.
    pub(super) places: Vec<PathBuf>,
}

/// Where the paths lead to that a file wants, each at the place of its path; a link that is rotated has two, its own and
/// the one it leads to.
#[derive(Debug, Default)]
pub(super) struct FoundPlaces {
    directories: Vec<Vec<PathBuf>>,
    rotated: Vec<Vec<PathBuf>>,
    files: Vec<Vec<PathBuf>>,
    shared_files: Vec<Vec<PathBuf>>,
    let_in: Vec<Vec<PathBuf>>,
}

/// What the clusters of a process that runs have in force, by their files.
pub(crate) type WantedInForce = BTreeMap<PathBuf, Arc<WantedPaths>>;

impl WantedPaths {
    /// Whether both want the same places for themselves alone.
    pub(crate) fn is_same(&self, other: &WantedPaths) -> bool {
        self.own().eq(other.own())
    }

    /// Whether the two could meet on the disk; rather too often than too seldom.
    pub(crate) fn may_meet(&self, other: &WantedPaths) -> bool {
        // Older copies of a directory begin with its name.
        let begins = |one: &Path, other: &Path| {
            let (one, other) = (one.as_os_str(), other.as_os_str());
            (one.as_encoded_bytes()).starts_with(other.as_encoded_bytes())
        };
        let meets = |one: &PathBuf| {
            let mut others = other.places.iter();
            others.any(|other| begins(one, other) || begins(other, one))
        };
        self.places.iter().any(meets)
    }

    /// Finds out where all of it leads to; as slow as the disks that it leads to. What it leads to later counts for
    /// nothing: what is open is open there.
    pub(super) fn find_places(&mut self, resolve: &dyn Fn(&Path) -> PathBuf) {
        let places = |named: &[Named], by_own_name| -> Vec<Vec<PathBuf>> {
            let of_one = |named: &Named| {
                let mut places = vec![resolve(&named.path)];
                // A link is renamed itself, and what it leads to may be, too.
                let above = named.path.parent().filter(|_| by_own_name);
                if let Some((above, name)) = above.zip(named.path.file_name()) {
                    places.push(resolve(above).join(name));
                }
                places
            };
            named.iter().map(of_one).collect()
        };
        self.found = FoundPlaces {
            directories: places(&self.directories, false),
            rotated: places(&self.rotated, true),
            files: places(&self.files, false),
            shared_files: places(&self.shared_files, false),
            let_in: places(self.let_in.as_slice(), false),
        };
        let own = self.found.directories.iter().chain(&self.found.files);
        self.places = own.flatten().cloned().collect();
    }

    fn own(&self) -> impl Iterator<Item = &Path> {
        let own = self.directories.iter().chain(&self.files);
        own.map(|named| named.path.as_path())
    }
}

/// Who has a place.
#[derive(Debug, Clone)]
struct Owner {
    file: PathBuf,
    named: Named,
    may_share: bool,
}

/// A path and where it leads.
type FoundPath<'a> = (&'a Named, &'a Vec<PathBuf>);

/// Every place that is taken.
pub(super) struct Claims {
    directories: HashMap<PathBuf, Owner>,
    /// Directories above those, which nobody may claim as a whole.
    above: HashMap<PathBuf, Owner>,
    /// Names that copies of a rotated directory get, by the name without their suffix.
    names_like: HashMap<PathBuf, Owner>,
    rotated: HashMap<PathBuf, Owner>,
    files: HashMap<PathBuf, Owner>,
}

impl Claims {
    /// What the host itself has.
    pub(super) fn of_host(host: &HostConfig) -> Self {
        let mut claims = Claims {
            directories: HashMap::new(),
            above: HashMap::new(),
            names_like: HashMap::new(),
            rotated: HashMap::new(),
            files: HashMap::new(),
        };
        let owner = |key: &str, path: &Path, may_share| Owner {
            file: host.path.clone(),
            named: Named {
                key: key.to_owned(),
                place: SettingPlace::File,
                path: path.to_path_buf(),
            },
            may_share,
        };
        let pidfile = host.receiver_pidfile();
        let files = [
            ("this ini file", Some(host.path.as_path()), false),
            ("tls_key", Some(&host.tls.key), false),
            ("tls_cert", Some(&host.tls.certificate), false),
            ("pidfile", Some(&pidfile), false),
            ("logfile", host.logfile.as_deref(), true),
        ];
        for (key, path, may_share) in files {
            let Some(path) = path else { continue };
            let at = files::resolved(path);
            claims.files.insert(at, owner(key, path, may_share));
        }
        // What lies in it is a cluster's own affair; the folder itself is nobody's.
        for above in files::resolved(&host.clusters).ancestors() {
            let taken = owner("clusters", &host.clusters, false);
            claims.above.insert(above.to_path_buf(), taken);
        }
        claims
    }

    /// Takes what `file` wants, all of it or nothing; answers with notes about what it shares.
    pub(super) fn take(&mut self, file: &Path, wanted: &WantedPaths) -> Result<Vec<String>, Fault> {
        let found = &wanted.found;
        let directories = found_paths(&wanted.directories, &found.directories);
        let rotated = found_paths(&wanted.rotated, &found.rotated);
        let files = found_paths(&wanted.files, &found.files);
        let shared = found_paths(&wanted.shared_files, &found.shared_files);
        let let_in = found_paths(wanted.let_in.as_slice(), &found.let_in);
        let all = || files.iter().chain(&shared).chain(&let_in);
        let mut notes = Vec::new();
        for (named, places) in all() {
            for place in *places {
                let Some(owner) = self.files.get(place) else {
                    continue;
                };
                let is_shared = owner.may_share && owner.named.key == named.key;
                if !is_shared {
                    return Err(fault(named, "the same file as", owner));
                }
            }
        }
        for (named, places) in &let_in {
            for owner in places.iter().filter_map(|at| self.files.get(at)) {
                notes.push(check_both_mean_it(file, named, owner)?);
            }
        }
        for (named, places) in &directories {
            places
                .iter()
                .try_for_each(|at| self.check_directory(named, at))?;
        }
        for (named, places) in &rotated {
            places
                .iter()
                .try_for_each(|at| self.check_rotated(named, at))?;
        }
        let owner = |named: &Named, may_share| Owner {
            file: file.to_path_buf(),
            named: named.clone(),
            may_share,
        };
        for (list, may_share) in [(&files, false), (&shared, true), (&let_in, true)] {
            for (named, places) in list {
                let taken = places.iter().cloned();
                self.files
                    .extend(taken.map(|at| (at, owner(named, may_share))));
            }
        }
        for (named, places) in rotated {
            let taken = places.iter().cloned();
            self.rotated
                .extend(taken.map(|at| (at, owner(named, false))));
        }
        for (named, places) in directories {
            for place in places {
                for at in place.ancestors() {
                    self.above
                        .entry(at.to_path_buf())
                        .or_insert_with(|| owner(named, false));
                    if let Some(like) = without_suffix(at) {
                        self.names_like
                            .entry(like)
                            .or_insert_with(|| owner(named, false));
                    }
                }
                self.directories.insert(place.clone(), owner(named, false));
            }
        }
        Ok(notes)
    }

    fn check_directory(&self, named: &Named, at: &Path) -> Result<(), Fault> {
        for above in at.ancestors() {
            if let Some(owner) = self.directories.get(above) {
                let relation = match above == at {
                    true => "the same directory as",
                    false => "a directory inside",
                };
                return Err(fault(named, relation, owner));
            }
            let like = without_suffix(above);
            if let Some(owner) = like.and_then(|like| self.rotated.get(&like)) {
                return Err(fault(named, "a name that older copies get, of", owner));
            }
        }
        match self.above.get(at) {
            Some(owner) => Err(fault(named, "a directory around", owner)),
            None => Ok(()),
        }
    }

    fn check_rotated(&self, named: &Named, at: &Path) -> Result<(), Fault> {
        match self.names_like.get(at) {
            Some(owner) => Err(fault(named, "whose older copies get the name of", owner)),
            None => Ok(()),
        }
    }
}

fn found_paths<'a>(named: &'a [Named], places: &'a [Vec<PathBuf>]) -> Vec<FoundPath<'a>> {
    named.iter().zip(places).collect()
}

/// The name without the suffix of an older copy; `None` if it has none.
fn without_suffix(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    // The name before the suffix may have dots itself, and so may the suffix: `expired.1`.
    let ends = name.match_indices('.').map(|(at, _)| name.split_at(at));
    let mut ends = ends.filter(|(base, _)| !base.is_empty());
    let found = ends.find(|(_, suffix)| is_rotated_suffix(&suffix[1..]));
    found.map(|(base, _)| path.with_file_name(base))
}

/// One list of two files is meant only where both name it: by default all files of a folder would have the same.
fn check_both_mean_it(file: &Path, named: &Named, owner: &Owner) -> Result<String, Fault> {
    let is_written = |named: &Named| named.place != SettingPlace::File;
    if is_written(named) && is_written(&owner.named) {
        return Ok(format!(
            "{}: {} = {} is also that of {}: a master that is let in there is let in here",
            named.place.in_file(file),
            named.key,
            named.path.display(),
            owner.file.display(),
        ));
    }
    let says = format!(
        "expected a list of its own, found {}, which {} reads, too: whoever is listed there may write into both archives",
        named.path.display(),
        owner.file.display(),
    );
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let hint = format!(
        "set `{key} = {}.{key}` and authorize its masters there, or set the same path in both files if that is meant",
        name.replace('%', "%%"),
        key = named.key,
    );
    Err(Fault::of_key(named.place, &named.key, says).hint(hint))
}

fn fault(named: &Named, relation: &str, owner: &Owner) -> Fault {
    let says = format!(
        "expected a place that no other file names, found {} = {}, {relation} {} = {} ({})",
        named.key,
        named.path.display(),
        owner.named.key,
        owner.named.path.display(),
        owner.named.place.in_file(&owner.file),
    );
    Fault::of_key(named.place, &named.key, says).hint("give each a path of its own")
}

#[cfg(test)]
mod tests;
