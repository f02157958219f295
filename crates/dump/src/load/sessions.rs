//! Sessions that load: settings for speed, with memory that fits.

use super::LoadOptions;
use crate::DumpError;
use crate::connection::{Server, for_writing};
use crate::names::{literal, quoted};
use pg_wire::Client;

/// No session gets more for making an index, in kB: sorting gains little from more.
const MEMORY_MAX: u64 = 1 << 20;

/// What all sessions of a load set.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// `maintenance_work_mem`, as the user said or in kB.
    memory: Option<String>,
    role: Option<String>,
}

impl Settings {
    /// For a server, by what it has.
    pub(super) async fn of(client: &mut Client, options: &LoadOptions) -> Result<Self, DumpError> {
        let memory = match &options.maintenance_memory {
            Some(memory) => Some(memory.clone()),
            None => {
                let sql = "SELECT (SELECT setting::int8 FROM pg_catalog.pg_settings \
                     WHERE name = 'maintenance_work_mem')::text AS own, \
                     (pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')) / 1024)::text AS shared";
                let row = client.query_one(sql, &[]).await?;
                let (own, shared) = (row.get("own")?, row.get("shared")?);
                let free = if client.target().contains("/.s.PGSQL.") { free_memory() } else { None };
                memory(own, shared, free, options.workers).map(|memory| format!("{memory}kB"))
            }
        };
        Ok(Self { memory, role: options.role.clone() })
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
}
