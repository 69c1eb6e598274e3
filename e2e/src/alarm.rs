//! Alarms as a client raises, lowers and lists them: `etcdctl` cannot raise one.

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType};
use tonic::transport::Endpoint;

#[derive(Args, Debug, Clone)]
pub struct AlarmArgs {
    #[arg(value_enum)]
    action: Action,
    /// Client URL of a member
    #[arg(long)]
    endpoint: String,
    /// Member id; 0 is the member asked, or every one for `list`
    #[arg(long, default_value_t = 0)]
    member: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Action {
    Raise,
    Lower,
    List,
}

pub async fn run(args: AlarmArgs) -> Result<()> {
    let channel = Endpoint::from_shared(args.endpoint)?.connect().await?;
    let (action, kind) = match args.action {
        Action::Raise => (AlarmAction::Activate, AlarmType::Nospace),
        Action::Lower => (AlarmAction::Deactivate, AlarmType::Nospace),
        Action::List => (AlarmAction::Get, AlarmType::None),
    };
    let request = AlarmRequest { action: action.into(), member_id: args.member, alarm: kind.into() };
    let answer = MaintenanceClient::new(channel).alarm(request).await;
    let answer = answer.map_err(|refused| anyhow!("{:?}: {}", refused.code(), refused.message()))?;
    for alarm in answer.into_inner().alarms {
        println!("{}", alarm.member_id);
    }
    Ok(())
}
