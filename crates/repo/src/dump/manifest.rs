//! The manifest of a dump: facts, objects, streams.

use super::{DumpFacts, DumpObject, PIECE_MAX};
use crate::chunk::ChunkRef;
use crate::coding::{Cursor, Decoded, Malformed, put_varint};
use crate::section::{MUST_UNDERSTAND, SectionTable, Sections};
use crate::{ObjectReader, RepoError};
use std::collections::HashMap;
use store::ObjectPath;

const SECTION_FACTS: u8 = 1;
const SECTION_OBJECTS: u8 = 2;
const SECTION_STREAMS: u8 = 3;
const SECTION_MAX: u64 = 256 << 20;
/// What is read to open a manifest: as a rule all of it.
pub(super) const TAIL_LEN: u64 = 1 << 20;

/// A dump, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpManifest {
    /// What it is.
    pub facts: DumpFacts,
    /// Its data objects.
    pub objects: Vec<DumpObject>,
    /// The chunks of each stream, in order; their index is that of `objects`.
    pub streams: Vec<Vec<ChunkRef>>,
}

impl DumpManifest {
    /// Puts together what was written: references bear the *numbers* of their objects, as [`super::DumpDataWriter`] gives
    /// them. None when a reference names an object that was not written.
    pub fn assemble(facts: DumpFacts, mut objects: Vec<DumpObject>, mut streams: Vec<Vec<ChunkRef>>) -> Option<Self> {
        objects.sort_by_key(|object| object.number);
        let index: HashMap<u32, u32> = objects.iter().zip(0..).map(|(object, at)| (object.number, at)).collect();
        for chunk in streams.iter_mut().flatten() {
            chunk.pack = *index.get(&chunk.pack)?;
        }
        Some(Self { facts, objects, streams })
    }

    /// Plain bytes of a stream.
    pub fn stream_len(&self, stream: u32) -> u64 {
        self.streams
            .get(stream as usize)
            .map_or(0, |chunks| chunks.iter().map(|chunk| u64::from(chunk.plain_len)).sum())
    }

    pub(super) fn encode(&self, name: &ObjectPath) -> Result<Vec<u8>, RepoError> {
        let facts = serde_json::to_vec(&self.facts)
            .map_err(|error| RepoError::damaged(name, format!("cannot be written: {error}")))?;
        let mut objects = Vec::new();
        put_varint(&mut objects, self.objects.len() as u64);
        for object in &self.objects {
            put_varint(&mut objects, object.number.into());
            put_varint(&mut objects, object.size);
        }
        let mut streams = Vec::new();
        put_varint(&mut streams, self.streams.len() as u64);
        for chunks in &self.streams {
            put_varint(&mut streams, chunks.len() as u64);
            chunks.iter().for_each(|chunk| chunk.put(&mut streams));
        }
        let (mut payload, mut table) = (Vec::new(), SectionTable::default());
        for (kind, flags, plain) in [
            (SECTION_OBJECTS, MUST_UNDERSTAND, objects),
            (SECTION_STREAMS, MUST_UNDERSTAND, streams),
            // Last, so that the facts lie in the part that is read first.
            (SECTION_FACTS, 0, facts),
        ] {
            let block = table.add_block(kind, flags, payload.len() as u64, &plain);
            payload.extend_from_slice(&block);
        }
        payload.extend_from_slice(&table.finish());
        Ok(payload)
    }

    pub(super) async fn read_facts(object: &ObjectReader) -> Result<(Sections, DumpFacts), RepoError> {
        let sections = Sections::read(object, &[SECTION_FACTS, SECTION_OBJECTS, SECTION_STREAMS]).await?;
        let facts = sections.read_block(object, SECTION_FACTS, "facts", SECTION_MAX).await?;
        let facts = serde_json::from_slice(&facts)
            .map_err(|error| RepoError::damaged(object.name(), format!("facts: {error}")))?;
        Ok((sections, facts))
    }

    pub(super) async fn read(object: &ObjectReader) -> Result<Self, RepoError> {
        let damaged = |Malformed(reason)| RepoError::damaged(object.name(), reason);
        let (sections, facts) = Self::read_facts(object).await?;
        let objects = sections.read_block(object, SECTION_OBJECTS, "list of objects", SECTION_MAX).await?;
        let objects = parse_objects(&objects).map_err(damaged)?;
        let streams = sections.read_block(object, SECTION_STREAMS, "streams", SECTION_MAX).await?;
        let streams = parse_streams(&streams, objects.len()).map_err(damaged)?;
        let manifest = Self { facts, objects, streams };
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// Every stream that is referred to is there.
    fn check(&self) -> Decoded<()> {
        let databases = self.facts.databases.iter();
        let parts = databases.clone().flat_map(|database| &database.data).flat_map(|data| &data.parts);
        let named = parts.map(|part| part.stream).chain(databases.map(|database| database.definitions));
        let script = self.facts.imported.as_ref().and_then(|imported| imported.script);
        match named.chain(self.facts.globals).chain(script).find(|stream| *stream as usize >= self.streams.len()) {
            Some(stream) => Err(Malformed(format!("stream {stream} of {}", self.streams.len()))),
            None => Ok(()),
        }
    }
}

fn parse_objects(plain: &[u8]) -> Decoded<Vec<DumpObject>> {
    let mut cursor = Cursor::new(plain);
    let count = cursor.bounded("number of objects", plain.len() as u64)?;
    let mut objects = Vec::new();
    for _ in 0..count {
        let number = cursor.bounded("number of an object", u32::MAX.into())? as u32;
        objects.push(DumpObject { number, size: cursor.varint()? });
    }
    cursor.finish()?;
    Ok(objects)
}

fn parse_streams(plain: &[u8], objects: usize) -> Decoded<Vec<Vec<ChunkRef>>> {
    let mut cursor = Cursor::new(plain);
    let count = cursor.bounded("number of streams", plain.len() as u64)?;
    let mut streams = Vec::new();
    for _ in 0..count {
        let chunks = cursor.bounded("number of chunks", cursor.remaining() as u64)?;
        let chunks = (0..chunks).map(|_| ChunkRef::read(&mut cursor, objects, PIECE_MAX)).collect::<Decoded<_>>()?;
        streams.push(chunks);
    }
    cursor.finish()?;
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsing_never_panics(bytes: Vec<u8>, objects in 0usize..10) {
            let _ = parse_objects(&bytes);
            let _ = parse_streams(&bytes, objects);
        }
    }
}
