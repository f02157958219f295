//! What a copy of a dump in another repository needs: its data objects one by one, with the same chunks at the same places, and
//! the same ID. Chunks are not compressed again; objects are sealed with the keys of the repository that they go to.

use super::{DumpIntent, DumpManifest, DumpObject};
use crate::chunk::ChunkRef;
use crate::{BackupId, Cluster, RepoError};
use jiff::Timestamp;
use std::ops::RangeInclusive;

impl DumpManifest {
    /// The chunks of each of its objects, in the order in which they lie there.
    pub fn chunks_of_objects(&self) -> Vec<Vec<ChunkRef>> {
        let mut found = vec![Vec::new(); self.objects.len()];
        for chunk in self.streams.iter().flatten() {
            if let Some(chunks) = found.get_mut(chunk.pack as usize) {
                chunks.push(*chunk);
            }
        }
        for chunks in &mut found {
            chunks.sort_by_key(|chunk| chunk.offset);
            chunks.dedup_by_key(|chunk| chunk.offset);
        }
        found
    }

    /// The same dump where its objects have these sizes; None when they are not its objects.
    #[must_use]
    pub fn with_objects(&self, mut objects: Vec<DumpObject>) -> Option<Self> {
        objects.sort_by_key(|object| object.number);
        let same = |one: &[DumpObject]| one.iter().map(|object| object.number).collect::<Vec<_>>();
        let mut own = self.objects.clone();
        own.sort_by_key(|object| object.number);
        if same(&own) != same(&objects) {
            return None;
        }
        let size = |number: u32| objects.iter().find(|object| object.number == number).copied();
        let objects = self.objects.iter().map(|object| size(object.number)).collect::<Option<Vec<_>>>()?;
        Some(Self { objects, ..self.clone() })
    }
}

impl Cluster {
    /// The data objects that are there of a dump, finished or not.
    pub async fn dump_data_there(&self, id: BackupId) -> Result<Vec<DumpObject>, RepoError> {
        let found = self.dump_objects(id).await?;
        let data = found.into_iter().filter_map(|(path, size)| {
            Some(DumpObject { number: path.name().parse().ok().filter(|_| path.name().len() >= 6)?, size })
        });
        Ok(data.collect())
    }

    /// Deletes a data object that a copy left and that is not whole.
    pub async fn delete_dump_data(&self, id: BackupId, number: u32) -> Result<(), RepoError> {
        Ok(self.store().delete(&self.name().dump_data(id, number)).await?)
    }

    /// Begins a copy of a dump of another repository, which was made between two moments: says who makes it, and then looks
    /// whether something else has the ID, as who claims an ID looks for such an intent. An error when it has, or when somebody
    /// else makes the copy.
    pub async fn begin_copied_dump(
        &self,
        intent: &DumpIntent,
        made: RangeInclusive<Timestamp>,
        now: Timestamp,
    ) -> Result<(), RepoError> {
        self.put_dump_intent(intent).await?;
        match self.is_taken(intent.dump, made, now).await? {
            false => Ok(()),
            true => {
                self.delete_dump_intent(intent.dump).await?;
                Err(RepoError::Conflict { path: self.name().dump_prefix(intent.dump) })
            }
        }
    }

    /// Takes back the intent of a copy that nobody makes any more.
    pub async fn delete_dump_intent(&self, id: BackupId) -> Result<(), RepoError> {
        Ok(self.store().delete(&self.name().dump_intent(id)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Repository;
    use std::sync::Arc;
    use store::MemoryStore;

    #[tokio::test]
    async fn the_id_of_a_copy_is_nobody_elses() {
        let now: Timestamp = "2026-11-20T20:09:10Z".parse().unwrap();
        let repository = Repository::create(Arc::new(MemoryStore::new()), None, "test", now).await.unwrap();
        let cluster = repository.cluster(&"main".parse().unwrap());
        let intent =
            |dump| DumpIntent { dump, host: "h".into(), pid: 1, boot: "b".into(), process_start: 1, started: now };
        let (before, after) = ("2026-11-20T20:00:00Z".parse().unwrap(), "2026-11-20T20:11:00Z".parse().unwrap());
        // Somebody here has just claimed it, and has written nothing yet.
        let claimed = cluster.new_backup_id(now).await.unwrap();
        let error = cluster.begin_copied_dump(&intent(claimed), before..=before, now).await.unwrap_err();
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
        assert_eq!(cluster.dump_intent(claimed).await.unwrap(), None, "it gave way");
        // The claim is that of the dump itself, which was made here; or old.
        cluster.begin_copied_dump(&intent(claimed), before..=after, now).await.unwrap();
        assert!(cluster.begin_copied_dump(&intent(claimed), before..=after, now).await.is_err(), "by one at a time");
        cluster.delete_dump_intent(claimed).await.unwrap();
        cluster.begin_copied_dump(&intent(claimed), before..=before, after).await.unwrap();
        // Whoever wants an ID of the same time gets another one.
        let copied = claimed.next();
        cluster.begin_copied_dump(&intent(copied), before..=before, now).await.unwrap();
        assert_eq!(cluster.past_backup_id(copied.time(), now).await.unwrap(), copied.next());
        assert_eq!(cluster.dump_data_there(copied).await.unwrap(), [], "an intent is no data");
    }
}
