//! `init`: repository, configuration and server are made to fit each other.

use super::help::KEEP_A_COPY;
use super::{end, field, fields, library};
use crate::cli::InitArgs;
use crate::config::{
    self, Addition, ClusterConfig, ExpireConfig, HooksConfig, KeyConfig, Limits, RepositoryConfig, SnapshotConfig,
};
use crate::error::{CommandError, CommandResult};
use crate::keys;
use crate::output::table;
use crate::session::{MissingPlace, Opened, Session};
use engine::server::{self, ServerFacts};
use engine::setup::{
    self, ArchiveLibrary, InitOptions, InitPlan, RegisterOptions, Registered, SettingChange, apply_init, plan_init,
};
use jiff::Timestamp;
use repo::{ClusterName, Repository, Sealing};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) async fn run(session: &Session, args: &InitArgs) -> CommandResult {
    if session.environment.is_root {
        return Err(CommandError::usage(
            "init must run as the operating-system user that PostgreSQL runs as, not as root",
        )
        .hint("PostgreSQL's archive_command runs as that user, and needs the configuration, the key and the repository")
        .hint("sudo -u postgres pgkeep init …"));
    }
    let name: ClusterName = args.cluster.parse()?;
    let library = args.archive_library.as_ref();
    let library = library.map(|named| library::file(named.as_deref(), &session.environment.program)).transpose()?;
    let repository = repository_of(args)?;
    let repository_name = Some(args.repo_name.clone());
    let cluster = ClusterConfig {
        pg: args.pg.clone(),
        repository: repository_name,
        more_repositories: Vec::new(),
        workers: None,
        pgdata: None,
        snapshot: SnapshotConfig::default(),
        limits: Limits::USUAL,
        expire: ExpireConfig::default(),
        hooks: HooksConfig::default(),
    };
    let file = config::place_for_init(session.global.config.as_deref(), &session.environment);
    let addition = Addition {
        repository_name: &args.repo_name,
        repository: &repository,
        cluster_name: name.as_str(),
        cluster: &cluster,
        for_copies: args.for_copies,
    };
    let conninfo = session.conninfo(&args.pg)?;
    // What cannot be written later is said before anything is made.
    config::check_addition(&file, &addition)?;
    let context = session.context();
    let mut client = context.or_cancel(server::connect(&conninfo)).await??;
    let facts = context.or_cancel(ServerFacts::read(&mut client)).await??;
    warn_of_secrets(session, args);

    let (opened, made) = open_or_make(session, args, &repository).await?;
    let cluster_in_repo = opened.cluster(&name);
    let registered =
        setup::register(&context, &cluster_in_repo, &facts, RegisterOptions { new_system: args.new_system }).await?;
    let written = config::add_to_file(&file, &addition)?;
    session.output.note(words(&opened, made, &name, &registered, &facts));
    session.output.note(format!(
        "The configuration {} {}.",
        file.display(),
        if written { "was written" } else { "says so already" }
    ));
    if args.for_copies {
        let mut object = field("cluster", name.as_str())?;
        object.extend(field("config", &file)?);
        object.extend(field("repository", &repository.url)?);
        object.extend(field("made_repository", made)?);
        session.output.note(format!("Next: pgkeep copy --all --to {}", args.repo_name));
        return end(session, "init", object);
    }
    // From the file as it is now: the command strings must lead to what was just made.
    let opened = Opened {
        config: config::load_file(&file)?,
        name: name.to_string(),
        settings: cluster.clone(),
        repository_name: args.repo_name.clone(),
        repository,
        cluster: cluster_in_repo,
    };
    let library = library.map(|file| ArchiveLibrary {
        file: file.to_string_lossy().into_owned(),
        socket: library::socket(args.socket.as_deref(), &opened.config, &session.environment, name.as_str())
            .to_string_lossy()
            .into_owned(),
    });
    let options = InitOptions {
        archive_command: opened.command_strings(&session.environment.program).archive(),
        library,
        replace_archive_command: args.replace_archive_command,
    };
    let plan = plan_init(&context, &mut client, &facts, &options).await?;
    plan.notes.iter().for_each(|note| session.output.note(format!("note: {note}")));
    let mut object = field("cluster", name.as_str())?;
    object.extend(field("config", &file)?);
    object.extend(field("repository", &opened.repository.url)?);
    object.extend(field("made_repository", made)?);
    match &options.library {
        Some(library) => {
            object.extend(field("archive_library", &library.file)?);
            object.extend(field("socket", &library.socket)?);
        }
        None => object.extend(field("archive_command", &options.archive_command)?),
    }
    warn_of_other_archive(session, &plan);
    let next = next_commands(session, args, &file, &name, &options);
    if args.apply {
        let applied = apply_init(&context, &mut client, &facts, &plan).await?;
        say_applied(session, &applied.changed, &applied.pending_restart, &next);
        object.extend(field("applied", fields(&applied)?)?);
    } else {
        say_plan(session, &plan, &next);
        object.extend(field("plan", fields(&plan)?)?);
    }
    end(session, "init", object)
}

fn repository_of(args: &InitArgs) -> Result<RepositoryConfig, CommandError> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let key = match (&args.key_file, &args.passphrase_file, &args.key_command) {
        (Some(path), _, _) => KeyConfig::File(absolute(path)),
        (_, Some(path), _) => KeyConfig::Passphrase(absolute(path)),
        (_, _, Some(command)) => KeyConfig::Command(command.clone()),
        (None, None, None) => KeyConfig::None,
    };
    let mut options = BTreeMap::new();
    for text in &args.store_options {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            CommandError::usage(format!("--store-option {text}: write KEY=VALUE"))
                .hint(format!("the keys are {}", store::OPTION_KEYS.join(", ")))
        })?;
        options.insert(key.to_owned(), value.to_owned());
    }
    store::StoreOptions::from_pairs(&options)
        .map_err(|error| CommandError::usage(format!("--store-option: {error}")))?;
    let compression = args.compression.as_deref().map(str::parse).transpose();
    let compression = compression.map_err(|reason: String| CommandError::usage(format!("--compression: {reason}")))?;
    Ok(RepositoryConfig { url: args.url.clone(), key, compression, options, required: true })
}

/// What works in this shell and would not work in PostgreSQL's.
fn warn_of_secrets(session: &Session, args: &InitArgs) {
    if pg_wire::Params::parse(&args.pg).is_ok_and(|params| params.get("password").is_some()) {
        session.output.note(
            "note: the connection string holds a password, which now stands in the configuration; better put it into a \
             passfile (~/.pgpass, mode 0600)",
        );
    }
    let has_keys = args.store_options.iter().any(|option| option.starts_with("access-key-id="));
    if args.url.starts_with("s3:") && !has_keys && session.environment.aws.contains_key("AWS_ACCESS_KEY_ID") {
        session.output.note(
            "note: AWS_ACCESS_KEY_ID of this shell is not seen by PostgreSQL's archive_command; give the server the same \
             environment, use ~/.aws/credentials of its user, or --store-option access-key-id=… secret-access-key=…",
        );
    }
}

/// The repository that is there, opened with the key, or a new one. Says which.
async fn open_or_make(
    session: &Session,
    args: &InitArgs,
    repository: &RepositoryConfig,
) -> Result<(Repository, bool), CommandError> {
    // A key that is there is tried before anything is made.
    let mut loaded = match &repository.key {
        KeyConfig::File(path) if !path.exists() => None,
        KeyConfig::Passphrase(path) if !path.exists() => {
            return Err(CommandError::usage(format!("{}: there is no such passphrase file", path.display()))
                .hint("write a passphrase into it first, mode 0600; for an existing repository, its own"));
        }
        key => Some(session.context().or_cancel(keys::load(key)).await??),
    };
    let context = session.context();
    let store = session.open_store(repository, MissingPlace::Create)?;
    let found = context.or_cancel(Repository::inspect(&*store)).await??;
    let encrypted = !args.no_encryption;
    match found.as_ref().map(|facts| facts.seal) {
        Some(Sealing::None) if encrypted => Err(CommandError::failed(format!(
            "{}: there is a repository here already, and it is not encrypted",
            args.url
        ))
        .hint("join it with --no-encryption, or make an encrypted one at another place")),
        Some(Sealing::Aes256Gcm) if !encrypted => {
            Err(CommandError::failed(format!("{}: there is a repository here already, and it is encrypted", args.url))
                .hint("join it with the key it was made with: --key-file, --passphrase-file or --key-command"))
        }
        Some(_) => {
            let loaded = match loaded.take() {
                Some(loaded) => loaded,
                // Says what to do about a missing key file.
                None => keys::load(&repository.key).await?,
            };
            loaded.warnings.iter().for_each(|warning| session.output.warn(warning));
            Ok((context.or_cancel(Repository::open(store, loaded.key.as_ref())).await??, false))
        }
        None => {
            let loaded = match (loaded.take(), &repository.key) {
                (Some(loaded), _) => loaded,
                (None, key) => {
                    if let KeyConfig::File(path) = key {
                        make_key(session, path)?;
                    }
                    keys::load(key).await?
                }
            };
            loaded.warnings.iter().for_each(|warning| session.output.warn(warning));
            let made_by = concat!("pgkeep ", env!("CARGO_PKG_VERSION"));
            Ok((Repository::create(store, loaded.key.as_ref(), made_by, Timestamp::now()).await?, true))
        }
    }
}

fn make_key(session: &Session, path: &Path) -> Result<(), CommandError> {
    keys::create_file(path)?;
    session.output.always(format!("A new key is in {}.\n\n{KEEP_A_COPY}\n", path.display()));
    Ok(())
}

fn words(
    repository: &Repository,
    made: bool,
    name: &ClusterName,
    registered: &Registered,
    facts: &ServerFacts,
) -> String {
    let seal = match repository.facts().seal {
        Sealing::None => "not encrypted",
        Sealing::Aes256Gcm => "encrypted",
    };
    let place = repository.store().url();
    let first = if made {
        format!("Made the repository {place} ({seal}).")
    } else {
        format!("The repository {place} is there already ({seal}); its key fits.")
    };
    let second = match registered {
        Registered::New => format!("Entered the cluster '{name}' in it"),
        Registered::Known => format!("The cluster '{name}' is known to it"),
        Registered::NewSystem(previous) => {
            format!("The cluster '{name}' has a new system identifier (it was {previous}); noted")
        }
        Registered::NewTimeline { .. } => format!("The cluster '{name}' is known to it; its new timeline was noted"),
    };
    format!("{first}\n{second}: PostgreSQL {}, system identifier {}.", facts.version, facts.system_id)
}

fn changes_text(changes: &[SettingChange]) -> String {
    let lines = changes.iter().map(|change| {
        let restart = if change.needs_restart { "   (works after a restart)" } else { "" };
        let was = if change.from.is_empty() { "''" } else { &change.from };
        table::printable(&format!("  {} = {}   (was {was}){restart}", change.name, change.to))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn say_plan(session: &Session, plan: &InitPlan, next: &str) {
    for conflict in &plan.conflicts {
        session.output.warn(conflict);
    }
    if plan.changes.is_empty() {
        session.output.result("PostgreSQL is set up for archiving already.");
        say_next(session, &plan.pending_restart, next);
        return;
    }
    session.output.result(format!(
        "PostgreSQL needs these settings; the same command with --apply sets them (ALTER SYSTEM):\n{}",
        changes_text(&plan.changes)
    ));
    if plan.needs_restart() {
        session.output.result("After that PostgreSQL must be restarted.");
    }
}

fn say_applied(session: &Session, changed: &[SettingChange], pending_restart: &[String], next: &str) {
    if changed.is_empty() {
        session.output.result("PostgreSQL is set up for archiving already; nothing was changed.");
    } else {
        session.output.result(format!("Set in PostgreSQL:\n{}", changes_text(changed)));
    }
    say_next(session, pending_restart, next);
}

/// WAL goes to one place only: who takes it from another cluster's name or repository must know.
fn warn_of_other_archive(session: &Session, plan: &InitPlan) {
    let ours = |change: &&SettingChange| change.name == "archive_command" && change.from.contains(" wal push ");
    if let Some(change) = plan.changes.iter().find(ours) {
        session.output.always(format!(
            "note: PostgreSQL archives with another command of pgkeep's now, {}; after the change its WAL goes no longer \
             where that leads",
            change.from
        ));
    }
}

/// The commands to go on with, as they must be typed.
fn next_commands(session: &Session, args: &InitArgs, file: &Path, name: &ClusterName, options: &InitOptions) -> String {
    let usual = matches!(config::locate(None, &session.environment), config::Location::Found(found) if found == file);
    let named = usual || session.environment.config.is_some() && session.global.config.is_none();
    let option = if named { String::new() } else { format!(" --config {}", file.display()) };
    let then = format!("pgkeep{option} check {name}; pgkeep{option} backup {name}");
    match &options.library {
        Some(library) => {
            let socket = args.socket.as_ref().map(|_| format!(" --socket {}", library.socket)).unwrap_or_default();
            format!(
                "start `pgkeep{option} --cluster {name} wal serve{socket}` as a service of this user (docs/archive-library.md \
                 has a unit); until it runs, PostgreSQL keeps its WAL\n{then}"
            )
        }
        None => then,
    }
}

fn say_next(session: &Session, pending_restart: &[String], next: &str) {
    if pending_restart.is_empty() {
        session.output.result(format!("Next: {next}"));
    } else {
        session.output.result(format!(
            "RESTART PostgreSQL: until then {} {} not in force.\nThen: {next}",
            pending_restart.join(", "),
            if pending_restart.len() == 1 { "is" } else { "are" }
        ));
    }
}
