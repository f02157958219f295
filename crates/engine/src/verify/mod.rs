//! Verify: is everything that a recovery would need in the repository, and as it was written?
//!
//! Each object is looked at once. Packs come first, by their own footers; then each backup is compared with what was
//! found of them; then the WAL that the backups need. One bad object never hides the rest.

mod backups;
mod objects;
mod packs;
mod types;
mod wal;
mod wal_index;

pub use types::{BackupVerdict, Backups, Finding, FindingKind, Severity, VerifyOptions, VerifyReport};

use crate::{Context, EngineError};
use backups::BackupsLook;
use objects::Inventory;
use repo::{BackupId, RepoError};
use store::ObjectPath;

/// What is found, while it is found.
struct Findings {
    found: Vec<Finding>,
    objects: u64,
    bytes: u64,
    segments: u64,
}

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        kind: FindingKind,
        object: &ObjectPath,
        what: impl Into<String>,
    ) -> &mut Finding {
        let (index, what) = (self.found.len(), what.into());
        // Errors that are passed on begin with the object's name.
        let what = what.strip_prefix(&format!("{object}: ")).map(str::to_owned).unwrap_or(what);
        self.found.push(Finding {
            severity,
            kind,
            object: object.to_string(),
            what,
            effect: None,
            backups: Vec::new(),
        });
        &mut self.found[index]
    }

    /// Notes an object that could not be read; hands on what is no fault of the object.
    fn object(
        &mut self,
        severity: Severity,
        object: &ObjectPath,
        error: RepoError,
    ) -> Result<&mut Finding, EngineError> {
        let kind = match &error {
            RepoError::TooNew { .. } => FindingKind::TooNew,
            error if error.is_not_found() => FindingKind::Missing,
            error if error.is_damage() => FindingKind::Damaged,
            _ => return Err(error.into()),
        };
        Ok(self.add(severity, kind, object, error.to_string()))
    }

    fn backups_of(&mut self, object: &str, backup: BackupId) {
        for finding in self.found.iter_mut().filter(|finding| finding.object == object) {
            if !finding.backups.contains(&backup) {
                finding.backups.push(backup);
            }
        }
    }
}

/// Looks at a cluster's part of a repository and says what is wrong with it. Changes nothing.
pub async fn verify(
    ctx: &Context,
    cluster: &repo::Cluster,
    options: &VerifyOptions,
) -> Result<VerifyReport, EngineError> {
    let mut findings = Findings { found: Vec::new(), objects: 0, bytes: 0, segments: 0 };
    let inventory = Inventory::list(ctx, cluster).await?;
    let ids = match &options.backups {
        Backups::All => inventory.manifests.clone(),
        Backups::Only(ids) => {
            if let Some(missing) = ids.iter().find(|id| !inventory.manifests.contains(id)) {
                let what = format!("cluster {} has no backup {missing}", cluster.name());
                return Err(EngineError::not_found(what, "`pgkeep list` shows those there are"));
            }
            ids.clone()
        }
    };
    let all = options.backups == Backups::All;
    objects::look_at_small(ctx, cluster, &inventory, &mut findings).await?;
    let mut look = BackupsLook::open(ctx, cluster, &ids, &mut findings).await?;
    let wanted = look.packs(all.then_some(&inventory));
    let packs = packs::look_at_packs(ctx, cluster, &inventory, wanted, options, &mut findings).await?;
    look.compare(ctx, cluster, &inventory.packs, &packs, &mut findings).await?;
    if all {
        let noted = ctx.or_cancel(cluster.garbage()).await??.garbage;
        look.strays(cluster, &inventory, &noted, &mut findings);
    }
    if options.wal {
        wal::look_at_wal(ctx, cluster, &inventory, &mut look, options, &mut findings).await?;
    }
    let mut found = findings.found;
    found.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.object.cmp(&b.object)));
    found.dedup();
    Ok(VerifyReport {
        cluster: cluster.name().clone(),
        verdict: found.iter().map(|finding| finding.severity).max(),
        backups: look.verdicts(),
        findings: found,
        objects: findings.objects,
        bytes: findings.bytes,
        segments: findings.segments,
    })
}
