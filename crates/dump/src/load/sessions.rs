//! Sessions that load: settings for speed, with memory that fits.

use super::LoadOptions;
use crate::DumpError;
use crate::connection::{Server, for_writing};
use crate::names::{literal, quoted};
use pg_wire::Client;

/// No session gets more for making an index, in kB: sorting gains little from more.
const MEMORY_MAX: u64 = 1 << 20;

/// What a sort gets at least, in kB.
const SORT_MIN: u64 = 16 << 10;
/// What each process needs that sorts together with others, in kB.
const HELPER_MIN: u64 = 32 << 10;

/// What all sessions of a load set.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// `maintenance_work_mem`, as the user said or in kB.
    memory: Option<String>,
    /// Whether the user said it.
    memory_is_said: bool,
    role: Option<String>,
    /// How many more processes the server lets take part in making one index.
    helpers: u64,
    /// Processors for each session, where the server is on this host.
    processors: Option<u64>,
}

impl Settings {
    /// For a server, by what it has.
    pub(super) async fn of(client: &mut Client, options: &LoadOptions) -> Result<Self, DumpError> {
        let sql = "SELECT (SELECT setting::int8 FROM pg_catalog.pg_settings \
             WHERE name = 'maintenance_work_mem')::text AS own, \
             (pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')) / 1024)::text AS shared, \
             pg_catalog.current_setting('max_parallel_maintenance_workers') AS helpers";
        let row = client.query_one(sql, &[]).await?;
        let (own, shared, helpers) = (row.get("own")?, row.get("shared")?, row.get("helpers")?);
        let here = client.target().contains("/.s.PGSQL.");
        let memory = options.maintenance_memory.clone().or_else(|| {
            let free = if here { free_memory() } else { None };
            memory(own, shared, free, options.workers).map(|memory| format!("{memory}kB"))
        });
        let processors = std::thread::available_parallelism().map_or(1, |all| all.get() as u64);
        Ok(Self {
            memory,
            memory_is_said: options.maintenance_memory.is_some(),
            role: options.role.clone(),
            helpers,
            processors: here.then(|| processors / options.workers.max(1) as u64),
        })
    }

    /// What a transaction sets that builds something, while so many sessions are idle. Processes that help where all processors
    /// are busy only cost: each sorts a share of the rows, and then all is read once more.
    pub(super) fn for_building(&self, sorts: Option<u64>, idle: u64) -> String {
        let helpers = match self.processors {
            Some(processors) => self.helpers.min(idle.max(processors.saturating_sub(1))),
            None => self.helpers,
        };
        let mut sql = String::new();
        if helpers < self.helpers {
            sql += &format!("SET LOCAL max_parallel_maintenance_workers = {helpers}; ");
        }
        if let (Some(bytes), false) = (sorts, self.memory_is_said) {
            sql += &format!("SET LOCAL maintenance_work_mem = '{}kB'; ", sort_memory(bytes, helpers));
        }
        sql
    }

    /// A session with them.
    pub(super) async fn connect(&self, server: &Server) -> Result<Client, DumpError> {
        let mut client = for_writing(&server.conninfo).await?;
        // What is lost with the server's host is loaded again; the last transaction of a load waits for the disk.
        let mut sql = "SET synchronous_commit = off; ".to_owned();
        if let Some(memory) = &self.memory {
            sql += &format!("SET maintenance_work_mem = {}; ", literal(memory));
        }
        if let Some(role) = &self.role {
            sql += &format!("SET ROLE {}; ", quoted(role));
        }
        client.simple_query(&sql).await?;
        Ok(client)
    }
}

/// What a session gets, in kB: the sessions together an eighth of the memory that is free on this host when the server is here,
/// else half of the server's shared buffers (commonly a quarter of its memory). None when that is no more than its own setting.
fn memory(own: u64, shared: u64, free: Option<u64>, sessions: usize) -> Option<u64> {
    let all = free.map_or(0, |free| free / 8).max(shared / 2);
    let each = (all / sessions.max(1) as u64).min(MEMORY_MAX);
    (each > own).then_some(each)
}

/// What a B-tree of a table with so many bytes is sorted in, in kB. Runs that fit in a processor's cache are sorted faster than
/// one large one: texts take a third longer in 256 MB than in 16 MB. It must be so much that all runs are merged at once
/// (`tuplesort_merge_order` in `src/backend/utils/sort/tuplesort.c`: 256 kB for each). With helpers each must have 32 MB, or
/// there are none (`plan_create_index_workers`).
fn sort_memory(bytes: u64, helpers: u64) -> u64 {
    let runs = (bytes >> 10).saturating_mul(1 << 10).isqrt();
    let one = runs.clamp(SORT_MIN, MEMORY_MAX);
    if helpers == 0 { one } else { one.max(HELPER_MIN) * (helpers + 1) }
}

/// Memory that is free on this host, in kB.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_fits() {
        const MB: u64 = 1024;
        assert_eq!(memory(64 * MB, 128 * MB, None, 2), None, "the server's own is as much");
        assert_eq!(memory(64 * MB, 16 * 1024 * MB, None, 8), Some(1024 * MB));
        assert_eq!(memory(64 * MB, 128 * MB, Some(8 * 1024 * MB), 2), Some(512 * MB));
        assert_eq!(memory(64 * MB, 128 * MB, Some(100 * 1024 * MB), 2), Some(1024 * MB));
        assert_eq!(memory(2048 * MB, 128 * MB, Some(100 * 1024 * MB), 2), None);
    }

    #[test]
    fn what_builds_gets_what_nobody_else_needs() {
        const MB: u64 = 1024;
        assert_eq!(sort_memory(1 << 20, 0), 16 * MB);
        assert_eq!(sort_memory(2 << 30, 0), 45 * MB + 260, "46 runs at most");
        assert_eq!(sort_memory(1 << 40, 0), 1024 * MB);
        assert_eq!(sort_memory(1 << 20, 2), 96 * MB);
        let here = Settings { helpers: 2, processors: Some(1), ..Settings::default() };
        let said = |settings: &Settings, idle| settings.for_building(Some(1), idle);
        let alone = "SET LOCAL max_parallel_maintenance_workers = 0; SET LOCAL maintenance_work_mem = '16384kB'; ";
        assert_eq!(said(&here, 0), alone);
        assert_eq!(here.for_building(None, 0), "SET LOCAL max_parallel_maintenance_workers = 0; ");
        let one = "SET LOCAL max_parallel_maintenance_workers = 1; SET LOCAL maintenance_work_mem = '65536kB'; ";
        assert_eq!(said(&here, 1), one);
        let all = "SET LOCAL maintenance_work_mem = '98304kB'; ";
        assert_eq!(said(&Settings { processors: Some(8), ..here.clone() }, 0), all);
        assert_eq!(said(&Settings { processors: None, ..here.clone() }, 0), all);
        assert_eq!(said(&Settings { processors: None, memory_is_said: true, ..here }, 0), "", "the user knows better");
    }
}
