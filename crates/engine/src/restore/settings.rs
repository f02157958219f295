//! What a restored cluster is told: recovery settings, and what must not be left as it was on the origin.
//!
//! The server reads `postgresql.auto.conf` last, so what stands there counts
//! (`src/backend/utils/misc/guc-file.l`). Two recovery targets at once are a fatal error, also when one of them is set
//! to nothing after the other one was set (`assign_recovery_target_time` and its like in
//! `src/backend/access/transam/xlogrecovery.c`): the empty ones therefore come first.

use super::{PlannedSetting, PlannedTablespace, RecoveryTarget, RestoreRequest, TimelineChoice};
use crate::EngineError;
use pg_format::{Timeline, conf};
use std::path::Path;

/// The settings that name a target. At most one of them may be set.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// Settings of the origin that have no place in a restored cluster's `postgresql.auto.conf`.
const REMOVED: [&str; 11] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_timeline",
    "recovery_target_inclusive",
    "recovery_target_action",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
];

/// A time as `recovery_target_time` reads it, in UTC.
pub(super) fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}

/// What is written to `postgresql.auto.conf`, in order.
pub(super) fn settings(
    request: &RestoreRequest,
    timeline: Timeline,
    tablespaces: &[PlannedTablespace],
) -> Vec<PlannedSetting> {
    let mut settings = Vec::new();
    let mut add = |name: &str, value: &str| {
        settings.push(PlannedSetting { name: name.to_owned(), value: value.to_owned() });
    };
    add("restore_command", &request.restore_command);
    // Both may delete from, or act on, what belongs to the origin.
    add("archive_cleanup_command", "");
    add("recovery_end_command", "");
    let timeline = match (request.standby, request.timeline) {
        // A standby has to follow its primary to whatever timeline comes next.
        (true, TimelineChoice::Latest) => "latest".to_owned(),
        _ => timeline.to_string(),
    };
    add("recovery_target_timeline", &timeline);
    let target = match &request.target {
        RecoveryTarget::Latest => None,
        RecoveryTarget::Immediate => Some(("recovery_target", "immediate".to_owned())),
        RecoveryTarget::Time(time) => Some(("recovery_target_time", time_text(*time))),
        RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
        RecoveryTarget::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        RecoveryTarget::RestorePoint(name) => Some(("recovery_target_name", name.clone())),
    };
    for name in TARGETS {
        if target.as_ref().is_none_or(|(set, _)| *set != name) {
            add(name, "");
        }
    }
    if let Some((name, value)) = target {
        add(name, &value);
        if matches!(request.target, RecoveryTarget::Time(_) | RecoveryTarget::Xid(_) | RecoveryTarget::Lsn(_)) {
            add("recovery_target_inclusive", if request.exclusive { "off" } else { "on" });
        }
        add("recovery_target_action", request.action.as_str());
    }
    // Recovery ends with a PANIC at a tablespace in place without it (`CheckTablespaceDirectory` in xlogrecovery.c).
    if tablespaces.iter().any(|space| space.in_place) {
        add("allow_in_place_tablespaces", "on");
    }
    if !request.archive {
        add("archive_mode", "off");
        // Who the origin's commits wait for will not come here.
        add("synchronous_standby_names", "");
    }
    settings
}

/// The origin's `postgresql.auto.conf` with the settings of a restore in it. All that it says otherwise stays.
pub(crate) fn edit_auto_conf(
    path: &Path,
    text: &str,
    settings: &[PlannedSetting],
    archive: bool,
) -> Result<String, EngineError> {
    let mut out = text.to_owned();
    for name in REMOVED {
        out = conf::remove(&out, name);
    }
    for setting in settings {
        out = conf::remove(&out, &setting.name);
    }
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str("# Written by pgkeep restore.\n");
    for setting in settings {
        if setting.name == "archive_mode" && !archive {
            out.push_str(
                "# Off so that this cluster cannot push into the origin's archive. When it takes the origin's place:\n",
            );
            out.push_str("# ALTER SYSTEM RESET archive_mode, look at archive_command, and restart.\n");
        }
        // conf::set removes and appends; appending is what is left to do.
        out = conf::set(&out, &setting.name, &setting.value)
            .map_err(|error| EngineError::BadFile { path: path.to_owned(), reason: error.to_string() })?;
    }
    Ok(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::restore::{ExistingFiles, TargetAction, WalCheck};

    pub(in crate::restore) fn request(target: RecoveryTarget) -> RestoreRequest {
        RestoreRequest {
            target_dir: "/restored".into(),
            backup: None,
            target,
            exclusive: true,
            timeline: TimelineChoice::Latest,
            action: TargetAction::Promote,
            tablespaces: Vec::new(),
            existing: ExistingFiles::Refuse,
            standby: false,
            archive: false,
            restore_command: "pgkeep wal fetch %f '%p'".into(),
            owner: None,
            wal_check: WalCheck::Whole,
            workers: 2,
            bin_dirs: Vec::new(),
        }
    }

    fn text(request: &RestoreRequest, origin: &str) -> String {
        let settings = settings(request, Timeline(3), &[]);
        edit_auto_conf(Path::new("postgresql.auto.conf"), origin, &settings, request.archive).unwrap()
    }

    #[test]
    fn a_target_is_written_last_and_old_ones_are_gone() {
        let time = "2026-11-20T20:09:10.123456789Z".parse().unwrap();
        let origin = "# Do not edit this file manually!\nwork_mem = '8MB'\nrecovery_target_xid = '77'\n\
                      RECOVERY_TARGET_NAME = 'old'\narchive_cleanup_command = 'rm %r'\n";
        let text = text(&request(RecoveryTarget::Time(time)), origin);
        let conf = conf::ConfFile::parse(&text);
        assert_eq!(conf.errors, []);
        let names: Vec<String> = conf
            .directives
            .iter()
            .map(|directive| match &directive.kind {
                conf::DirectiveKind::Set { name, value } => format!("{name}={value}"),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(
            names,
            [
                "work_mem=8MB",
                "restore_command=pgkeep wal fetch %f '%p'",
                "archive_cleanup_command=",
                "recovery_end_command=",
                "recovery_target_timeline=3",
                "recovery_target=",
                "recovery_target_lsn=",
                "recovery_target_name=",
                "recovery_target_xid=",
                "recovery_target_time=2026-11-20 20:09:10.123456+00",
                "recovery_target_inclusive=off",
                "recovery_target_action=promote",
                "archive_mode=off",
                "synchronous_standby_names=",
            ]
        );
        assert!(text.starts_with("# Do not edit"), "{text}");
    }

    #[test]
    fn a_standby_follows_and_archiving_is_left_when_asked() {
        let mut request = request(RecoveryTarget::Latest);
        (request.standby, request.archive) = (true, true);
        let text = text(&request, "archive_mode = 'always'\n");
        let conf = conf::ConfFile::parse(&text);
        assert_eq!(conf.get("recovery_target_timeline"), Some("latest"));
        assert_eq!(conf.get("archive_mode"), Some("always"));
        assert_eq!(conf.get("recovery_target_action"), None);
        assert_eq!(conf.get("recovery_target_time"), Some(""));
    }

    #[test]
    fn names_are_quoted() {
        let text = text(&request(RecoveryTarget::RestorePoint("it's \\ here".into())), "");
        assert_eq!(conf::ConfFile::parse(&text).get("recovery_target_name"), Some("it's \\ here"));
    }
}
