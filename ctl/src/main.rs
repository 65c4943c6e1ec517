//! `outputguardctl`: the command line for people and pipelines.
//!
//! Map: [`args`] is what can be typed, [`client`] speaks to `/api/v1`, [`cluster`] waits for changes of the membership,
//! [`denied`] answers why
//! somebody was blocked, [`mod@print`] shows answers as a table or as JSON, [`top`] says who moves most,
//! [`transfer`] moves whole lists and states from and to files.
//! Exit codes: 0 done, 1 refused by the server or not found, 2 wrong usage (clap's), 3 no answer from any server.

mod args;
mod audit;
mod client;
mod cluster;
mod denied;
mod expiry;
mod names;
mod print;
mod top;
mod transfer;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::args::{Args, ClusterCommand, Command, TokenCommand};
use crate::client::{Client, Problem};
use crate::expiry::Ends;

/// The server answered and said no.
const EXIT_REFUSED: u8 = 1;
/// Nobody answered.
const EXIT_UNREACHABLE: u8 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    // Fails only when a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::error(&error);
            let refused = error.downcast_ref::<Problem>().is_some();
            ExitCode::from(if refused { EXIT_REFUSED } else { EXIT_UNREACHABLE })
        }
    }
}

async fn run(mut args: Args) -> anyhow::Result<()> {
    if let Command::Cluster { command: ClusterCommand::Recover { from_node, .. } } = &args.command {
        args.connection.addr.clone_from(from_node);
    }
    let client = Client::new(&args.connection)?;
    let output = args.output;
    match args.command {
        Command::Add(add) => {
            let added = client.add(&add).await?;
            print::entries(output, std::slice::from_ref(&added));
            print::receipt(output, &added);
        }
        Command::List { query } => print::entries(output, &client.list(query.as_deref()).await?),
        Command::Get { id } => print::entries(output, &[client.get(&format!("/entries/{id}")).await?]),
        Command::Protect { id } => {
            let entry = client.patch(&format!("/entries/{id}"), &json!({ "protected": true })).await?;
            print::entries(output, &[entry]);
        }
        Command::Expire { id, when } => {
            let ends = match when.as_str() {
                "never" => None,
                when => Some(when.parse::<Ends>()?.text(OffsetDateTime::now_utc())?),
            };
            let entry = client.patch(&format!("/entries/{id}"), &json!({ "expires_at": ends })).await?;
            print::entries(output, &[entry]);
        }
        Command::Remove { id, dry_run: true } => {
            print::impact(output, &client.get(&format!("/entries/{id}/impact")).await?);
        }
        Command::Remove { id, dry_run: false } => client.delete(&format!("/entries/{id}")).await?,
        Command::History { id } => {
            print::history(output, &client.get(&format!("/entries/{id}/history")).await?);
        }
        Command::Cluster { command } => cluster::run(&client, output, command).await?,
        Command::Names(wanted) => names::run(&client, output, &wanted).await?,
        Command::Status => print::status(output, &client.get("/status").await?),
        Command::Denied(wanted) => denied::run(&client, output, &wanted).await?,
        Command::Audit(wanted) => audit::audit(&client, output, &wanted).await?,
        Command::Cuts(wanted) => audit::cuts(&client, output, &wanted).await?,
        Command::Top(top) => top::run(&client, output, &top).await?,
        Command::Export { file, format } => transfer::export(&client, file.as_deref(), format).await?,
        Command::Import { file, format, dry_run } => {
            print::imported(output, &transfer::import(&client, &file, format, dry_run).await?);
        }
        Command::Backup { file } => print::saved(output, &file, &transfer::backup(&client, &file).await?),
        Command::Restore { file } => print::restored(output, &transfer::restore(&client, &file).await?),
        Command::Token { command } => match command {
            TokenCommand::Create { name, role } => {
                let answer = client.post("/tokens", &json!({ "name": name, "role": role.as_str() })).await?;
                let token =
                    answer.get("token").and_then(Value::as_str).context("the server sent no token")?;
                print::secret(output, &answer, token);
            }
            TokenCommand::List => print::value(&client.get("/tokens").await?),
            TokenCommand::Remove { name } => client.delete(&format!("/tokens/{name}")).await?,
        },
    }
    Ok(())
}
