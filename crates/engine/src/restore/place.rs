//! Where a restore writes: directories that must be empty, file systems that must have room, whom files belong to.

use super::{
    ExistingFiles, OwnerName, PlannedOwner, PlannedPlace, PlannedTablespace, RestoreRequest, TablespaceMapping,
};
use crate::EngineError;
use repo::manifest::{ManifestFacts, Owner, TablespaceFacts};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Refuses a target that is no absolute, plain path.
pub(crate) fn check_path(what: &str, path: &Path) -> Result<(), EngineError> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path.parent().is_some() {
        return Ok(());
    }
    Err(EngineError::refused(
        format!("{what} {} cannot be used", path.display()),
        "give an absolute path of a directory, without `.` and `..`",
    ))
}

/// Where each tablespace goes.
pub(crate) fn place_tablespaces(
    mappings: &[TablespaceMapping],
    target_dir: &Path,
    facts: &ManifestFacts,
) -> Result<Vec<PlannedTablespace>, EngineError> {
    let matches = |mapping: &TablespaceMapping, space: &TablespaceFacts| {
        mapping.from == space.name
            || mapping.from == space.oid.to_string()
            || (!space.in_place && mapping.from.trim_end_matches('/') == space.location.trim_end_matches('/'))
    };
    for mapping in mappings {
        check_path("the tablespace destination", &mapping.to)?;
        if !facts.tablespaces.iter().any(|space| matches(mapping, space)) {
            let known: Vec<String> = facts
                .tablespaces
                .iter()
                .map(|space| format!("{} (OID {}, {})", space.name, space.oid, space.location))
                .collect();
            let known =
                if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            let reason = format!("backup {} has no tablespace {:?}", facts.backup, mapping.from);
            return Err(EngineError::refused(reason, known));
        }
    }
    let mut planned = Vec::new();
    for space in &facts.tablespaces {
        let mut mapped = mappings.iter().filter(|mapping| matches(mapping, space));
        let mapping = mapped.next();
        if let Some(other) = mapped.find(|other| Some(&other.to) != mapping.map(|mapping| &mapping.to)) {
            let reason = format!("tablespace {} is mapped twice, also to {}", space.name, other.to.display());
            return Err(EngineError::refused(reason, "give each tablespace one destination"));
        }
        let in_place = space.in_place && mapping.is_none();
        let destination = match mapping {
            Some(mapping) => mapping.to.clone(),
            None if space.in_place => target_dir.join("pg_tblspc").join(space.oid.to_string()),
            None => PathBuf::from(&space.location),
        };
        if !in_place {
            check_path("the tablespace destination", &destination)?;
        }
        planned.push(PlannedTablespace {
            oid: space.oid,
            name: space.name.clone(),
            origin: space.location.clone(),
            destination,
            in_place,
        });
    }
    check_overlap(target_dir, &planned)?;
    Ok(planned)
}

/// No destination may lie in another.
fn check_overlap(target: &Path, spaces: &[PlannedTablespace]) -> Result<(), EngineError> {
    let mut all: Vec<(&Path, String)> = vec![(target, "the data directory".into())];
    let outside = spaces.iter().filter(|space| !space.in_place);
    all.extend(outside.map(|space| (space.destination.as_path(), format!("tablespace {}", space.name))));
    for (index, (one, what)) in all.iter().enumerate() {
        for (other, other_what) in &all[index + 1..] {
            if one.starts_with(other) || other.starts_with(one) {
                return Err(EngineError::refused(
                    format!(
                        "{what} ({}) and {other_what} ({}) would lie in each other",
                        one.display(),
                        other.display()
                    ),
                    "map the tablespace to a directory of its own: `--tablespace NAME=/other/directory`",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses a directory that a running server uses.
pub(crate) fn check_not_running(data: &Path) -> Result<(), EngineError> {
    let pid_file = data.join("postmaster.pid");
    let text = match fs::read_to_string(&pid_file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(EngineError::file(pid_file, "reading", error)),
    };
    // A server that shuts down or is standalone writes its process ID as a negative number.
    let pid = text.lines().next().and_then(|line| line.trim().trim_start_matches('-').parse::<i32>().ok());
    let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return Ok(()) };
    if rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return Ok(());
    }
    // The number may have been given to another process. A server's working directory is its data directory.
    let here = fs::canonicalize(data).ok();
    let cwd = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok();
    if let (Some(here), Some(cwd)) = (here, cwd)
        && here != cwd
    {
        return Ok(());
    }
    Err(EngineError::refused(
        format!("{} is in use by a running server (process {})", data.display(), pid.as_raw_nonzero()),
        "restore to another directory; pgkeep never writes into a running cluster",
    ))
}

/// Refuses a directory with something in it, unless that is to be removed. A lone `lost+found` does not count.
pub(crate) fn check_empty(what: &str, dir: &Path, existing: ExistingFiles) -> Result<(), EngineError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return check_can_make(what, dir),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(EngineError::refused(format!("{what} {} is not a directory", dir.display()), "choose another"));
        }
        Err(error) => return Err(EngineError::file(dir, "listing", error)),
    };
    let mut count = 0u64;
    let mut first = None;
    for entry in entries {
        let name = entry.map_err(|error| EngineError::file(dir, "listing", error))?.file_name();
        if name != "lost+found" {
            count += 1;
            first.get_or_insert(name);
        }
    }
    if let Some(first) = first.filter(|_| existing == ExistingFiles::Refuse) {
        return Err(EngineError::refused(
            format!(
                "{what} {} is not empty: it has {count} entries, such as {:?}",
                dir.display(),
                first.to_string_lossy()
            ),
            if what.starts_with("tablespace") {
                "map it to an empty directory: `--tablespace NAME=/other/directory`"
            } else {
                "choose a directory that is empty or does not exist"
            },
        ));
    }
    check_writable(dir)
}

/// Refuses to empty what does not look like a data directory, or like what a restore that ended early left: a path typed
/// one part too short may hold several clusters.
pub(super) fn check_data_directory(dir: &Path) -> Result<(), EngineError> {
    let is_empty = fs::read_dir(dir)
        .map_or(true, |mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")));
    let has = |name: &str| dir.join(name).exists();
    if is_empty || has("PG_VERSION") || (has("base") && has("global")) {
        return Ok(());
    }
    Err(EngineError::refused(
        format!("{} is not a data directory: it is not emptied", dir.display()),
        "choose the data directory itself, or an empty one; what is in this one can only be removed by hand",
    ))
}

/// Refuses to empty a tablespace's directory that another cluster may be using. A backup names the origin's places, so
/// that a forced restore beside a running origin would otherwise remove its tablespaces. What may go: what the target
/// directory links to, as a former restore left it, and what was named by a mapping.
pub(super) fn check_removable(
    request: &RestoreRequest,
    space: &PlannedTablespace,
    origin: &Path,
) -> Result<(), EngineError> {
    let Ok(real) = fs::canonicalize(&space.destination) else { return Ok(()) };
    let empty =
        fs::read_dir(&real).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == "lost+found"));
    if request.existing == ExistingFiles::Refuse || empty {
        return Ok(());
    }
    let links_here = |data: &Path| {
        let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
        links.map(|link| link.path()).any(|link| fs::canonicalize(link).is_ok_and(|path| path == real))
    };
    let is_target = fs::canonicalize(origin).ok() == fs::canonicalize(&request.target_dir).ok();
    if !is_target && links_here(origin) {
        check_not_running(origin).map_err(|_| {
            EngineError::refused(
                format!(
                    "tablespace {}'s directory {} belongs to the running server in {}",
                    space.name,
                    space.destination.display(),
                    origin.display()
                ),
                format!("map it to a directory of its own: `--tablespace {}=/other/directory`", space.name),
            )
        })?;
    }
    let mapped = request.tablespaces.iter().any(|mapping| mapping.to == space.destination);
    if mapped || links_here(&request.target_dir) {
        return Ok(());
    }
    Err(EngineError::refused(
        format!(
            "tablespace {}'s directory {} is not empty, and nothing shows that what is there belongs to {}",
            space.name,
            space.destination.display(),
            request.target_dir.display()
        ),
        format!(
            "map it to a directory of its own, `--tablespace {0}=/other/directory`; when what is there is to be removed, \
             say so: `--tablespace {0}={1}`",
            space.name,
            space.destination.display()
        ),
    ))
}

fn check_writable(dir: &Path) -> Result<(), EngineError> {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).map_err(|error| {
        EngineError::refused(
            format!("{} cannot be written to: {}", dir.display(), io::Error::from(error)),
            "run as a user who may write there, or choose another directory",
        )
    })
}

fn check_can_make(what: &str, dir: &Path) -> Result<(), EngineError> {
    let parent = existing_ancestor(dir);
    if parent.is_dir() {
        return check_writable(&parent);
    }
    Err(EngineError::refused(
        format!("{what} {} cannot be made: {} is not a directory", dir.display(), parent.display()),
        "choose another directory",
    ))
}

/// The nearest directory above that exists, or the path itself.
fn existing_ancestor(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Sums up what is needed on each file system, and what is free there.
pub(crate) fn places(needs: &[(PathBuf, u64)]) -> Result<Vec<PlannedPlace>, EngineError> {
    let mut places: BTreeMap<u64, PlannedPlace> = BTreeMap::new();
    for (dir, bytes) in needs {
        let there = existing_ancestor(dir);
        let device = fs::metadata(&there).map_err(|error| EngineError::file(&there, "looking at", error))?.dev();
        let space =
            rustix::fs::statvfs(&there).map_err(|e| EngineError::file(&there, "asking for free space", e.into()))?;
        let blocks = if rustix::process::geteuid().is_root() { space.f_bfree } else { space.f_bavail };
        let place = places.entry(device).or_insert_with(|| PlannedPlace {
            directories: Vec::new(),
            needed_bytes: 0,
            free_bytes: blocks.saturating_mul(space.f_frsize),
        });
        place.directories.push(dir.clone());
        place.needed_bytes = place.needed_bytes.saturating_add(*bytes);
    }
    Ok(places.into_values().collect())
}

/// Refuses when there is too little room. What is there already and will be removed counts as free in `reclaimed`.
pub(crate) fn check_space(places: &[PlannedPlace]) -> Result<(), EngineError> {
    let short: Vec<String> = places
        .iter()
        .filter(|place| place.needed_bytes > place.free_bytes)
        .map(|place| {
            let dirs: Vec<String> = place.directories.iter().map(|dir| dir.display().to_string()).collect();
            format!("{} needs {} bytes, {} are free", dirs.join(" and "), place.needed_bytes, place.free_bytes)
        })
        .collect();
    if short.is_empty() {
        return Ok(());
    }
    Err(EngineError::refused(
        format!("too little disk space: {}", short.join("; ")),
        "make room, or restore to a larger file system",
    ))
}

/// A user or group of this host.
fn lookup(database: &str, name: &str) -> Option<Vec<String>> {
    let by_file = fs::read_to_string(format!("/etc/{database}")).unwrap_or_default();
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let wanted = |fields: &Vec<String>| fields.len() > 2 && (fields[0] == name || fields[2] == name);
    if let Some(found) = by_file.lines().map(fields).find(wanted) {
        return Some(found);
    }
    // Other sources of names, such as LDAP.
    let output = std::process::Command::new("getent").arg(database).arg("--").arg(name).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(fields).filter(|fields| fields.len() > 2)
}

/// Whom files are given to. Only root can give files away; for others all is left as it is made.
pub(crate) fn resolve_owners(
    given: Option<&OwnerName>,
    owners: &[Owner],
    warnings: &mut Vec<String>,
) -> Result<Vec<PlannedOwner>, EngineError> {
    let unchanged = PlannedOwner { uid: None, gid: None };
    if !rustix::process::geteuid().is_root() {
        if let Some(owner) = given {
            let own = rustix::process::geteuid().as_raw();
            let wanted = lookup("passwd", &owner.user).and_then(|fields| fields[2].parse::<u32>().ok());
            if wanted != Some(own) {
                return Err(EngineError::refused(
                    format!("only root can give the files to user {}", owner.user),
                    "run as root, or as that user without `--owner`",
                ));
            }
        }
        return Ok(vec![unchanged; owners.len()]);
    }
    owners.iter().map(|owner| resolve_owner(given, owner, warnings)).collect()
}

fn resolve_owner(
    asked: Option<&OwnerName>,
    owner: &Owner,
    warnings: &mut Vec<String>,
) -> Result<PlannedOwner, EngineError> {
    let (user, group) = match asked {
        Some(asked) => (&asked.user, asked.group.as_ref()),
        None => (&owner.user, Some(&owner.group)),
    };
    let number = |fields: &[String], index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok());
    let Some(fields) = lookup("passwd", user) else {
        return Err(EngineError::refused(
            format!("there is no user {user:?} on this host to give the files to"),
            "make the user, or say whom they are to belong to: `--owner USER`",
        ));
    };
    let primary = number(&fields, 3);
    let gid = match group {
        None => primary,
        Some(group) => match lookup("group", group) {
            Some(fields) => number(&fields, 2),
            None if asked.is_some() => {
                return Err(EngineError::refused(format!("there is no group {group:?} on this host"), "give another"));
            }
            None => {
                let text = format!("there is no group {group:?} on this host: files get the group of user {user}");
                if !warnings.contains(&text) {
                    warnings.push(text);
                }
                primary
            }
        },
    };
    Ok(PlannedOwner { uid: number(&fields, 2), gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_with_something_in_them_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |existing| check_empty("target", dir.path(), existing);
        check(ExistingFiles::Refuse).unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        check(ExistingFiles::Refuse).unwrap();
        check_empty("target", &dir.path().join("a/b"), ExistingFiles::Refuse).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let error = check(ExistingFiles::Refuse).unwrap_err();
        assert!(error.to_string().contains("is not empty: it has 1 entries, such as \"file\""), "{error}");
        check(ExistingFiles::Remove).unwrap();
        assert!(check_empty("target", &dir.path().join("file"), ExistingFiles::Remove).is_err(), "a file");
        assert!(check_empty("target", &dir.path().join("file/x"), ExistingFiles::Remove).is_err(), "below a file");
    }

    #[test]
    fn only_data_directories_are_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let check = || check_data_directory(dir.path());
        check().unwrap();
        fs::create_dir_all(dir.path().join("15/main/base")).unwrap();
        assert!(check().unwrap_err().to_string().contains("is not a data directory"));
        for made in ["base", "global"] {
            fs::create_dir(dir.path().join(made)).unwrap();
        }
        check().unwrap();
        fs::remove_dir(dir.path().join("base")).unwrap();
        fs::write(dir.path().join("PG_VERSION"), "15").unwrap();
        check().unwrap();
        check_data_directory(&dir.path().join("absent")).unwrap();
    }

    #[test]
    fn tablespaces_of_others_are_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [target, origin, fast] = ["target", "origin", "fast"].map(|name| dir.path().join(name));
        for made in [target.join("pg_tblspc"), origin.join("pg_tblspc"), fast.join("PG_15_202209061/5")] {
            fs::create_dir_all(made).unwrap();
        }
        let space = PlannedTablespace {
            oid: 7,
            name: "fast".into(),
            origin: fast.display().to_string(),
            destination: fast.clone(),
            in_place: false,
        };
        let mut request = crate::restore::settings::tests::request(crate::restore::RecoveryTarget::Latest);
        request.target_dir = target.clone();
        let check = |request: &RestoreRequest| check_removable(request, &space, &origin).map_err(|e| e.to_string());
        check(&request).unwrap();
        request.existing = ExistingFiles::Remove;
        assert!(check(&request).unwrap_err().contains("nothing shows"));
        let mapping = TablespaceMapping { from: "fast".into(), to: fast.clone() };
        let mapped = RestoreRequest { tablespaces: vec![mapping], ..request.clone() };
        check(&mapped).unwrap();
        std::os::unix::fs::symlink(&fast, target.join("pg_tblspc/7")).unwrap();
        check(&request).unwrap();
        // The origin runs on this host and uses it.
        std::os::unix::fs::symlink(&fast, origin.join("pg_tblspc/7")).unwrap();
        check(&mapped).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&origin).spawn().unwrap();
        fs::write(origin.join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let errors = [check(&request), check(&mapped)];
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            errors.iter().all(|error| error.as_ref().is_err_and(|text| text.contains("running server"))),
            "{errors:?}"
        );
        fs::remove_dir_all(fast.join("PG_15_202209061")).unwrap();
        check(&request).unwrap();
    }

    #[test]
    fn a_server_is_running_only_when_its_process_is_there() {
        let dir = tempfile::tempdir().unwrap();
        check_not_running(dir.path()).unwrap();
        let write = |text: String| fs::write(dir.path().join("postmaster.pid"), text).unwrap();
        // This process lives, but works elsewhere.
        write(format!("{}\n/somewhere\n", std::process::id()));
        check_not_running(dir.path()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        write(format!("{}\n", child.id()));
        let error = check_not_running(dir.path()).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(error.to_string().contains("in use by a running server"), "{error}");
        check_not_running(dir.path()).unwrap();
    }

    #[test]
    fn room_is_counted_for_each_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two/deep"));
        let planned = places(&[(one.clone(), 1 << 20), (two.clone(), 2 << 20)]).unwrap();
        assert_eq!(planned.len(), 1);
        assert_eq!((planned[0].needed_bytes, &planned[0].directories), (3 << 20, &vec![one, two]));
        check_space(&planned).unwrap();
        let full = PlannedPlace { free_bytes: (3 << 20) - 1, ..planned[0].clone() };
        let error = check_space(&[full]).unwrap_err();
        assert!(error.to_string().contains("needs 3145728 bytes, 3145727 are free"), "{error}");
    }

    #[test]
    fn paths_that_could_lead_astray_are_refused() {
        for bad in ["relative", "/", "/a/../b", "../x"] {
            assert!(check_path("target", Path::new(bad)).is_err(), "{bad}");
        }
        check_path("target", Path::new("/a/b")).unwrap();
    }
}
