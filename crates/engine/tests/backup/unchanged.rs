//! Pages that nothing says have changed: damaged ones stay as they were stored, and differing ones are found.

use super::support::{Archived, Result, content};
use pg_format::page_checksum;
use std::path::{Path, PathBuf};
use testkit::pg::StopMode;

const PAGE: usize = 8192;

/// A table of which every page is frozen and written, and where it lies.
fn frozen(archived: &Archived, name: &str) -> Result<PathBuf> {
    let server = &archived.server;
    server.sql(&format!("CREATE TABLE {name} AS SELECT g, md5(g::text) AS t FROM generate_series(1, 20000) g"))?;
    server.sql(&format!("VACUUM (FREEZE) {name}"))?;
    server.sql("CHECKPOINT")?;
    Ok(server.data_dir().join(server.sql(&format!("SELECT pg_relation_filepath('{name}')"))?))
}

/// Changes a file behind the stopped server's back.
fn change(archived: &mut Archived, file: &Path, edit: impl Fn(&mut [u8])) -> Result {
    archived.server.stop(StopMode::Fast)?;
    let mut bytes = std::fs::read(file)?;
    edit(&mut bytes);
    std::fs::write(file, bytes)?;
    archived.server.start_again()?;
    Ok(())
}

async fn page_in_backup(archived: &Archived, backup: repo::BackupId, file: &Path, page: usize) -> Result<Vec<u8>> {
    let cluster = archived.cluster().await?;
    let manifest = cluster.open_manifest(backup).await?;
    let path = format!("data/{}", file.strip_prefix(archived.server.data_dir())?.display());
    let entry = manifest.find(path.as_bytes()).await?.expect("the table is in the backup");
    Ok(content(&cluster, &manifest, &entry).await?[page * PAGE..(page + 1) * PAGE].to_vec())
}

/// The disk lost a page; an earlier backup has it. Whoever restores the newest one gets the whole page.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_damaged_now_stays_as_it_was_stored() -> Result {
    let mut archived = Archived::start().await?;
    let file = frozen(&archived, "hurt")?;
    archived.backup().await?;
    let good = std::fs::read(&file)?[3 * PAGE..4 * PAGE].to_vec();
    change(&mut archived, &file, |bytes| bytes[3 * PAGE + 5000] ^= 1)?;
    archived.remove_wal_indexes().await?;
    let report = archived.backup().await?;
    assert_eq!(report.change_detection.used, "page-lsn");
    let damaged: Vec<_> = report.damaged.iter().map(|page| (page.relation.as_deref(), page.block)).collect();
    assert_eq!(damaged, [(Some("public.hurt"), 3)]);
    assert_eq!(page_in_backup(&archived, report.backup, &file, 3).await?, good);
    // A page that was damaged counts as changed from then on, until it is whole again.
    let again = archived.backup().await?;
    assert_eq!(again.damaged.len(), 1, "{:?}", again.damaged);
    Ok(())
}

/// Something wrote past the server, and the page's checksum is right: only a comparison shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_changed_behind_the_servers_back_is_found_within_the_rounds() -> Result {
    let mut archived = Archived::start().await?;
    let file = frozen(&archived, "altered")?;
    archived.backup().await?;
    change(&mut archived, &file, |bytes| {
        let page = &mut bytes[3 * PAGE..4 * PAGE];
        // The last byte of the first row.
        page[PAGE - 4] ^= 1;
        let sum = page_checksum(page, 3);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
    })?;
    for round in 0..28 {
        let report = archived.backup().await?;
        let again = report.look_again.expect("it builds on another one");
        assert_eq!((again.round, again.rounds), (round, 28));
        assert!(report.damaged.is_empty(), "{:?}", report.damaged);
        if let [page] = again.differing.as_slice() {
            assert_eq!((page.relation.as_deref(), page.block), (Some("public.altered"), 3), "{page:?}");
            let live = std::fs::read(&file)?[3 * PAGE..4 * PAGE].to_vec();
            assert_eq!(page_in_backup(&archived, report.backup, &file, 3).await?, live, "it is stored again");
            return Ok(());
        }
        assert!(again.differing.is_empty(), "{again:?}");
    }
    anyhow::bail!("it was not found")
}
