//! The dumps of a cluster: made, listed, opened, deleted.

use super::facts::DeletionMark;
use super::manifest::TAIL_LEN;
use super::{DumpDataReader, DumpDataWriter, DumpFacts, DumpIntent, DumpManifest};
use crate::numbered::{get_json, put_json};
use crate::object::put_whole;
use crate::seal::Kind;
use crate::{BackupId, Cluster, ObjectReader, ObjectSink, Pin, RepoError};
use jiff::Timestamp;
use std::collections::BTreeMap;
use store::{Created, ObjectPath, StoreError};

/// A data object of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpObject {
    /// Its number in the dump.
    pub number: u32,
    /// Its size in bytes.
    pub size: u64,
}

/// What came of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DumpDeletion {
    /// It is gone.
    Deleted {
        /// Objects that it had.
        objects: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// It stays.
    Pinned(Pin),
}

const PAGE: usize = 1000;

impl Cluster {
    /// The IDs of all finished dumps, ascending.
    pub async fn dumps(&self) -> Result<Vec<BackupId>, RepoError> {
        let all = self.all_dumps().await?;
        Ok(all.into_iter().filter_map(|(id, finished)| finished.then_some(id)).collect())
    }

    /// The IDs of dumps that have objects but no manifest: being made, or broken off.
    pub async fn unfinished_dumps(&self) -> Result<Vec<BackupId>, RepoError> {
        let all = self.all_dumps().await?;
        Ok(all.into_iter().filter_map(|(id, finished)| (!finished).then_some(id)).collect())
    }

    /// Every ID below `dumps`, and whether it has a manifest.
    async fn all_dumps(&self) -> Result<BTreeMap<BackupId, bool>, RepoError> {
        let prefix = self.name().dumps_prefix();
        let level = self.store().list_level(Some(&prefix)).await?;
        let mut found = BTreeMap::new();
        for id in level.prefixes.iter().filter_map(|path| path.name().parse::<BackupId>().ok()) {
            let finished = match self.store().head(&self.name().dump_manifest(id)).await {
                Ok(_) => true,
                Err(error) if error.is_not_found() => false,
                Err(error) => return Err(error.into()),
            };
            found.insert(id, finished);
        }
        Ok(found)
    }

    /// Says that a dump begins. An error when the ID is taken.
    pub async fn put_dump_intent(&self, intent: &DumpIntent) -> Result<(), RepoError> {
        let path = self.name().dump_intent(intent.dump);
        match put_json(&**self.store(), self.keys(), Kind::Dump, &path, intent).await? {
            Created::New => Ok(()),
            Created::Exists => Err(RepoError::Conflict { path }),
        }
    }

    /// Who makes, or made, a dump; none when it is finished or nothing was written.
    pub async fn dump_intent(&self, id: BackupId) -> Result<Option<DumpIntent>, RepoError> {
        match get_json(&**self.store(), self.keys(), Kind::Dump, &self.name().dump_intent(id)).await {
            Ok(intent) => Ok(Some(intent)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a data object of a dump.
    pub async fn create_dump_data(&self, id: BackupId, number: u32) -> Result<DumpDataWriter, RepoError> {
        let path = self.name().dump_data(id, number);
        let sink = ObjectSink::create(self.store().clone(), self.keys(), Kind::Dump, path).await?;
        Ok(DumpDataWriter { number, sink })
    }

    /// Opens a data object of known size.
    pub async fn open_dump_data(&self, id: BackupId, object: DumpObject) -> Result<DumpDataReader, RepoError> {
        let path = self.name().dump_data(id, object.number);
        let object = ObjectReader::open_sized(self.store().clone(), self.keys(), Kind::Dump, path, object.size).await?;
        Ok(DumpDataReader { object })
    }

    /// Writes the manifest, which makes the dump, and takes back the intent.
    pub async fn put_dump_manifest(&self, manifest: &DumpManifest) -> Result<(), RepoError> {
        let id = manifest.facts.dump;
        let path = self.name().dump_manifest(id);
        let payload = manifest.encode(&path)?;
        match put_whole(&**self.store(), self.keys(), Kind::Dump, &path, &payload).await? {
            Created::New => {}
            Created::Exists => return Err(RepoError::Conflict { path }),
        }
        // The dump is there; an intent that stays says nothing wrong.
        let _ = self.store().delete(&self.name().dump_intent(id)).await;
        Ok(())
    }

    async fn dump_object(&self, id: BackupId) -> Result<ObjectReader, RepoError> {
        let path = self.name().dump_manifest(id);
        ObjectReader::open(self.store().clone(), self.keys(), Kind::Dump, path, TAIL_LEN).await
    }

    /// Opens a dump.
    pub async fn open_dump(&self, id: BackupId) -> Result<DumpManifest, RepoError> {
        DumpManifest::read(&self.dump_object(id).await?).await
    }

    /// The facts of a dump.
    pub async fn dump_facts(&self, id: BackupId) -> Result<DumpFacts, RepoError> {
        Ok(DumpManifest::read_facts(&self.dump_object(id).await?).await?.1)
    }

    /// Whether a dump is being deleted, or its deletion was broken off.
    pub async fn is_dump_marked(&self, id: BackupId) -> Result<bool, RepoError> {
        match self.store().head(&self.name().dump_mark(id)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a dump, or what a broken-off one left, unless it is pinned: it is marked first, and then the pins are read, as a pin is
    /// written first and then looks for the mark. Then the manifest goes, the intent, everything else, and the mark at last.
    pub async fn delete_dump(&self, id: BackupId, now: Timestamp) -> Result<DumpDeletion, RepoError> {
        let mark = self.name().dump_mark(id);
        let written =
            put_json(&**self.store(), self.keys(), Kind::Dump, &mark, &DeletionMark { dump: id, at: now }).await;
        match written {
            Ok(_) => {}
            // To make room must be possible where there is none.
            Err(RepoError::Store(StoreError::Full { .. })) => {}
            Err(error) => return Err(error),
        }
        let facts = self.facts().await?;
        if let Some(pin) = facts.as_ref().and_then(|facts| facts.pin_of(id, now)) {
            self.store().delete(&mark).await?;
            return Ok(DumpDeletion::Pinned(pin.clone()));
        }
        let mut found = self.dump_objects(id).await?;
        found.retain(|(path, _)| *path != mark);
        self.store().delete(&self.name().dump_manifest(id)).await?;
        // Whoever still makes it sees that it is gone before it writes a manifest.
        self.store().delete(&self.name().dump_intent(id)).await?;
        for (path, _) in &found {
            self.store().delete(path).await?;
        }
        self.store().delete(&mark).await?;
        Ok(DumpDeletion::Deleted { objects: found.len() as u64, bytes: found.iter().map(|(_, size)| size).sum() })
    }

    /// Everything below `dumps/ID`, with its size.
    pub(super) async fn dump_objects(&self, id: BackupId) -> Result<Vec<(ObjectPath, u64)>, RepoError> {
        let prefix = self.name().dump_prefix(id);
        let mut found: Vec<(ObjectPath, u64)> = Vec::new();
        loop {
            let after = found.last().map(|(path, _)| path.clone());
            let page = self.store().list_page(Some(&prefix), after.as_ref(), PAGE).await?;
            let last = page.len() < PAGE;
            found.extend(page.into_iter().map(|object| (object.path, object.size)));
            if last {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Compression;
    use crate::dump::{DumpEncoder, DumpedDatabase, DumpedPart};
    use crate::{ClusterFacts, KeySource, Repository};
    use std::sync::Arc;
    use store::{MemoryStore, Store};

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn facts(dump: BackupId) -> DumpFacts {
        let database = DumpedDatabase {
            name: "db".into(),
            encoding: "UTF8".into(),
            snapshot_time: dump.time(),
            snapshot_lsn: None,
            tools: "15.20".into(),
            definitions: 0,
            data: Vec::new(),
            unread: Vec::new(),
        };
        DumpFacts {
            dump,
            cluster: "main".parse().unwrap(),
            label: None,
            made_by: "test".into(),
            host: "h".into(),
            started: dump.time(),
            finished: dump.time(),
            system_id: None,
            pg_version: "15.20".into(),
            pg_version_num: 150020,
            compression: "zstd:1".into(),
            bytes: 0,
            stored_bytes: 0,
            synchronised_within_us: None,
            globals: None,
            databases: vec![database],
            selection: Vec::new(),
            imported: None,
            warnings: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_dump_is_there_once_its_manifest_is() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let now: Timestamp = "2026-11-20T20:09:10Z".parse().unwrap();
        let key = KeySource::key_file(KEY).unwrap();
        let repository = Repository::create(store.clone(), Some(&key), "test", now).await.unwrap();
        let cluster = repository.cluster(&"main".parse().unwrap());
        let id = cluster.new_backup_id(now).await.unwrap();
        let intent =
            DumpIntent { dump: id, host: "h".into(), pid: 1, boot: "b".into(), process_start: 1, started: now };
        cluster.put_dump_intent(&intent).await.unwrap();
        assert!(cluster.put_dump_intent(&intent).await.is_err(), "an ID is taken once");
        assert_eq!(cluster.dump_intent(id).await.unwrap(), Some(intent));

        let mut encoder = DumpEncoder::new(Compression::Zstd(1));
        let mut data = cluster.create_dump_data(id, 7).await.unwrap();
        let pieces: Vec<Vec<u8>> = vec![b"one\n".repeat(1000), Vec::new(), vec![7; 2 << 20]];
        let mut stream = Vec::new();
        for piece in &pieces {
            stream.push(data.add(&encoder.encode(piece)).await.unwrap());
        }
        let object = DumpObject { number: 7, size: data.finish().await.unwrap() };
        assert_eq!((cluster.dumps().await.unwrap(), cluster.unfinished_dumps().await.unwrap()), (vec![], vec![id]));
        assert_eq!(cluster.new_backup_id(now).await.unwrap(), id.next());

        assert!(DumpManifest::assemble(facts(id), Vec::new(), vec![stream.clone()]).is_none());
        let manifest = DumpManifest::assemble(facts(id), vec![object], vec![stream]).unwrap();
        cluster.put_dump_manifest(&manifest).await.unwrap();
        assert_eq!(cluster.dumps().await.unwrap(), [id]);
        assert_eq!(cluster.dump_intent(id).await.unwrap(), None);
        assert_eq!(cluster.dump_facts(id).await.unwrap(), manifest.facts);
        let read = cluster.open_dump(id).await.unwrap();
        assert_eq!(read, manifest);
        assert_eq!(read.stream_len(0), pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        let reader = cluster.open_dump_data(id, read.objects[0]).await.unwrap();
        for (place, piece) in read.streams[0].iter().zip(&pieces) {
            assert_eq!(&reader.read(place).await.unwrap(), piece);
            let wrong = crate::chunk::ChunkRef { hash16: [0; 16], ..*place };
            assert!(reader.read(&wrong).await.is_err());
        }

        // A pin keeps it; one that comes while it goes does not hold.
        let none = ClusterFacts { name: cluster.name().clone(), systems: vec![], pins: vec![] };
        cluster.update_facts(|_| Some(none.clone())).await.unwrap();
        let pin = Pin { backup: id, until: None, reason: "audit".into() };
        cluster.pin(&pin, now).await.unwrap();
        assert_eq!(cluster.delete_dump(id, now).await.unwrap(), DumpDeletion::Pinned(pin.clone()));
        assert_eq!(cluster.open_dump(id).await.unwrap(), manifest);
        assert!(!cluster.is_dump_marked(id).await.unwrap());
        assert_eq!(cluster.unpin(id, now).await.unwrap(), Some(pin.clone()));
        let mark = cluster.name().dump_mark(id);
        put_json(&*store, cluster.keys(), Kind::Dump, &mark, &DeletionMark { dump: id, at: now }).await.unwrap();
        let error = cluster.pin(&pin, now).await.unwrap_err();
        assert!(matches!(error, RepoError::BeingDeleted { .. }), "{error}");
        assert_eq!(cluster.known_facts().await.unwrap().pins, []);

        let DumpDeletion::Deleted { objects, bytes } = cluster.delete_dump(id, now).await.unwrap() else { panic!() };
        assert!(objects == 2 && bytes > object.size, "{objects} objects, {bytes} bytes");
        assert!(cluster.pin(&pin, now).await.unwrap_err().is_not_found());
        assert!(cluster.dumps().await.unwrap().is_empty() && cluster.unfinished_dumps().await.unwrap().is_empty());
        assert!(cluster.open_dump(id).await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn a_manifest_that_names_no_stream_is_refused() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let now: Timestamp = "2026-11-20T20:09:10Z".parse().unwrap();
        let repository = Repository::create(store, None, "test", now).await.unwrap();
        let cluster = repository.cluster(&"main".parse().unwrap());
        let id = BackupId::at(now);
        let mut facts = facts(id);
        let part = DumpedPart { stream: 1, rows: 0, bytes: 0, sum: None };
        facts.databases[0].data.push(crate::dump::DumpedData {
            entry: 1,
            kind: crate::dump::DataKind::Table,
            schema: "s".into(),
            name: "t".into(),
            rows: 0,
            bytes: 0,
            parts: vec![part],
        });
        let manifest = DumpManifest { facts, objects: Vec::new(), streams: vec![Vec::new()] };
        cluster.put_dump_manifest(&manifest).await.unwrap();
        let error = cluster.open_dump(id).await.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("stream 1 of 1"), "{error}");
    }
}
