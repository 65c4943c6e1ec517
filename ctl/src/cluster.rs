//! `outputguardctl cluster …`. A change may take longer than a request (a new node is sent the whole state), and the
//! leader may change under it; the same request is sent again until it is done.

use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{ClusterCommand, Output, Patience};
use crate::client::{Client, Problem};
use crate::print;

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) async fn run(client: &Client, output: Output, command: ClusterCommand) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Members => {
            print::members(output, &client.get("/cluster/members").await?);
            Ok(())
        }
        ClusterCommand::Add { address, patience } => {
            let body = json!({ "address": address });
            let member = until_voter(client, &body, patience).await?;
            let sentence = format!(
                "{} at {} is a voter",
                print::field(&member, "name"),
                print::field(&member, "address")
            );
            print::outcome(output, &member, &sentence);
            Ok(())
        }
        ClusterCommand::Replace { old, address, force, patience } => {
            let body = json!({ "address": address, "replaces": old, "force": force });
            let member = until_voter(client, &body, patience).await?;
            let sentence = format!(
                "{} at {} is a voter; {old} is no member any more",
                print::field(&member, "name"),
                print::field(&member, "address")
            );
            print::outcome(output, &member, &sentence);
            Ok(())
        }
        ClusterCommand::Remove { member, force, patience } => {
            let force = if force { "true" } else { "false" };
            let mut asked_before = false;
            repeat(patience, async || {
                let removed = client.delete_named("/cluster/members", &member, &[("force", force)]).await;
                // An answer that got lost on the way: the request before was carried out.
                let gone =
                    asked_before && removed.as_ref().is_err_and(|error| code(error) == Some("not_found"));
                asked_before = true;
                if gone { Ok(Some(())) } else { removed.map(Some) }
            })
            .await?;
            print::outcome(output, &json!({ "removed": member }), &format!("{member} is no member any more"));
            Ok(())
        }
        ClusterCommand::StepDown { to, patience } => {
            let body = json!({ "to": to });
            let answer =
                repeat(patience, async || client.post("/cluster/step-down", &body).await.map(Some)).await?;
            let sentence = format!("{} leads", print::field(&answer, "leader"));
            print::outcome(output, &answer, &sentence);
            Ok(())
        }
        ClusterCommand::Recover { yes_i_lost_the_majority: Some(lost), patience, .. } => {
            recover(client, output, &lost, patience).await
        }
        ClusterCommand::Recover { yes_i_lost_the_majority: None, .. } => {
            let plan = client.get("/cluster/recovery").await?;
            print::recovery(output, &plan);
            Ok(())
        }
    }
}

async fn recover(client: &Client, output: Output, lost: &str, patience: Patience) -> anyhow::Result<()> {
    let recovered = client.post("/cluster/recovery", &json!({ "lost_cluster": lost })).await?;
    let cluster = print::field(&recovered, "cluster");
    print::progress(&format!("the node restarts as cluster {cluster}"));
    let deadline = Instant::now() + Duration::from_secs(patience.timeout);
    loop {
        // While it restarts it does not answer.
        let members = client.get("/cluster/members").await.unwrap_or(Value::Null);
        let arrived = members.get("cluster") == recovered.get("cluster")
            && members.get("leader").is_some_and(Value::is_string);
        if arrived {
            let sentence = format!(
                "{} leads cluster {cluster}; empty the data directories of the other nodes (keep tls/) and start them: \
                 they join",
                print::field(&members, "leader")
            );
            print::outcome(output, &recovered, &sentence);
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("the node is not back after {} s; its log says why", patience.timeout);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn until_voter(client: &Client, body: &Value, patience: Patience) -> anyhow::Result<Value> {
    let mut told = String::new();
    repeat(patience, async || {
        let member = client.post("/cluster/members", body).await?;
        if member.get("state").and_then(Value::as_str) == Some("voter") {
            return Ok(Some(member));
        }
        let (name, behind) = (print::field(&member, "name"), print::field(&member, "behind"));
        let sentence = format!("{name} is being sent the state; it lacks {behind} log entries");
        if told != sentence {
            print::progress(&sentence);
            told = sentence;
        }
        Ok(None)
    })
    .await
}

/// Sends a request again while the answer is "not yet" or "not now".
async fn repeat<T>(
    patience: Patience,
    mut request: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(patience.timeout);
    loop {
        let why = match request().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) if is_passing(&error) => Some(error),
            Err(error) => return Err(error),
        };
        if Instant::now() + PAUSE >= deadline {
            match why {
                Some(error) => return Err(error),
                None => bail!("not done after {} s; run the same command again to go on", patience.timeout),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// True for what may be gone in a moment: an election, another change, an answer that got lost.
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(
        code(error),
        Some("no_quorum" | "membership_busy" | "outcome_unknown" | "deadline_exceeded" | "draining")
    )
}

fn code(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Problem>()?.code()
}
