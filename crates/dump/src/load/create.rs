//! Making the database: as the dump's own was, from template0, also under another name.

use super::LoadOptions;
use crate::DumpError;
use crate::archive::{Archive, Entry};
use crate::connection::{Server, for_writing};
use crate::names::quoted;
use engine::{Context, Unit};

/// Whether there is a database of that name.
pub(super) async fn is_there(server: &Server, name: &str) -> Result<bool, DumpError> {
    let mut client = for_writing(&server.conninfo).await?;
    let sql = "SELECT 1 AS one FROM pg_catalog.pg_database WHERE datname = $1";
    let known = client.query_opt(sql, &[Some(name)]).await?;
    client.close().await;
    Ok(known.is_some())
}

pub(super) fn there_already(name: &str) -> DumpError {
    DumpError::refused(
        format!("there is a database {name} already"),
        "drop it, give another name with --create NAME, or load into it (--into 'dbname=…')",
    )
}

/// Makes a database named `name`, which is not there, and connects to it.
pub(super) async fn create(
    ctx: &Context,
    server: &Server,
    archive: Option<&Archive>,
    name: &str,
    options: &LoadOptions,
) -> Result<Server, DumpError> {
    ctx.progress.phase("making the database", None, Unit::Items);
    let mut client = for_writing(&server.conninfo).await?;
    // SQL text and tar files do not say how their database was made before they are read.
    let made = archive.and_then(|archive| definition(archive.of_kind("DATABASE")?));
    let made = made.map(|text| if options.no_tablespaces { without_tablespace(&text) } else { text });
    let (old, statement) = match made.as_deref().and_then(|text| renamed(text, name)) {
        Some((old, statement)) => (Some(old), statement),
        None => (None, format!("CREATE DATABASE {} TEMPLATE template0", quoted(name))),
    };
    client.simple_query(&statement).await?;
    if let (Some(entry), false) = (archive.and_then(|archive| archive.of_kind("DATABASE")), options.no_owner)
        && let Some(owner) = entry.owner.as_deref().and_then(|owner| std::str::from_utf8(owner).ok())
        && !owner.is_empty()
    {
        let sql = format!("ALTER DATABASE {} OWNER TO {}", quoted(name), quoted(owner));
        if let Err(error) = client.simple_query(&sql).await {
            ctx.progress.warn(&format!("database {name} does not belong to {owner}: {error}"));
        }
    }
    let entries = archive.map_or(&[][..], |archive| &archive.entries);
    for entry in entries.iter().filter(|entry| about_database(entry)) {
        if entry.kind() == b"ACL" && options.no_privileges {
            continue;
        }
        let Some((old, text)) = old.as_deref().zip(definition(entry)) else { continue };
        if let Err(error) = client.simple_query(&with_name(&text, old, name)).await {
            ctx.progress.warn(&format!("a setting of database {name} was not made: {error}"));
        }
    }
    client.close().await;
    server.database(name)
}

fn definition(entry: &Entry) -> Option<String> {
    String::from_utf8(entry.definition.clone()?).ok().filter(|text| !text.trim().is_empty())
}

/// Settings, comments and privileges of the database itself.
fn about_database(entry: &Entry) -> bool {
    let of_database = entry.tag.as_deref().is_some_and(|tag| tag.starts_with(b"DATABASE "));
    entry.kind() == b"DATABASE PROPERTIES"
        || of_database && matches!(entry.kind(), b"COMMENT" | b"ACL" | b"SECURITY LABEL")
}

/// `CREATE DATABASE old WITH …;` under another name; and how the old name stands in it.
fn renamed(statement: &str, name: &str) -> Option<(String, String)> {
    let rest = statement.trim_start().strip_prefix("CREATE DATABASE ")?;
    let mut quoted_now = false;
    let end = rest.find(|c: char| {
        quoted_now ^= c == '"';
        !quoted_now && (c == ' ' || c == ';')
    })?;
    let (old, rest) = rest.split_at(end);
    // A tablespace is where the old server had it; it is there or the statement says that it is not.
    Some((old.to_owned(), format!("CREATE DATABASE {}{}", quoted(name), rest.trim_end())))
}

/// `CREATE DATABASE … TABLESPACE = name;`, in the default one.
fn without_tablespace(statement: &str) -> String {
    match statement.rsplit_once(" TABLESPACE = ") {
        // It stands last (`dumpDatabase` in `src/bin/pg_dump/pg_dump.c`).
        Some((before, name)) if !name.contains(" = ") => format!("{before};"),
        _ => statement.to_owned(),
    }
}

/// The statements of pg_dump's about a database, for another one. Each begins on a line of its own.
fn with_name(text: &str, old: &str, name: &str) -> String {
    let new = quoted(name);
    let lines = text.lines().map(|line| {
        for before in ["ALTER DATABASE ", "COMMENT ON DATABASE ", "SECURITY LABEL ", "GRANT ", "REVOKE "] {
            if line.starts_with(before) {
                return line.replacen(&format!("DATABASE {old} "), &format!("DATABASE {new} "), 1);
            }
        }
        line.to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_gets_another_name() {
        let (old, sql) =
            renamed("CREATE DATABASE \"Odd; one\" WITH TEMPLATE = template0 ENCODING = 'UTF8';\n\n\n", "new").unwrap();
        assert_eq!(old, "\"Odd; one\"");
        assert_eq!(sql, "CREATE DATABASE \"new\" WITH TEMPLATE = template0 ENCODING = 'UTF8';");
        assert_eq!(renamed("CREATE DATABASE a;", "b").unwrap().1, "CREATE DATABASE \"b\";");
        let placed = "CREATE DATABASE a WITH ENCODING = 'UTF8' TABLESPACE = \"a b\";\n";
        assert_eq!(without_tablespace(placed), "CREATE DATABASE a WITH ENCODING = 'UTF8';");
        assert_eq!(without_tablespace("CREATE DATABASE a;"), "CREATE DATABASE a;");
        let text = "ALTER DATABASE a SET x TO 'y';\nGRANT CONNECT ON DATABASE a TO r;\n\nCOMMENT ON DATABASE a IS 'on DATABASE a ';";
        let expect = "ALTER DATABASE \"b\" SET x TO 'y';\nGRANT CONNECT ON DATABASE \"b\" TO r;\n\nCOMMENT ON DATABASE \"b\" IS 'on DATABASE a ';";
        assert_eq!(with_name(text, "a", "b"), expect);
    }
}
