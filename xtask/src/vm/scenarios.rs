//! Which scenarios run in guests: all but those named here, each with its reason.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{self, note};

/// What stays on the host tier: rates, counts and volumes, which an emulated processor says nothing
/// about and takes forever for.
const HOST_ONLY: [(&str, &str); 29] = [
    (
        "a_day::of_short_certificates_shows_none_that_is_over_and_fails_no_request",
        "rate: a day in a minute and a half",
    ),
    ("bulk::a_gibibyte_up_and_a_gibibyte_down", "volume: four gibibytes through TLS"),
    ("many_connections::twenty_thousand_short_ones_over_two_destinations", "count"),
    ("many_connections::two_thousand_are_held_open_and_then_used", "count"),
    ("churn::every_connection_is_the_right_pods_and_nothing_is_left", "count: pods that come and go"),
    ("crash::loose_goes_direct_while_nobody_answers_and_is_captured_again", "rate"),
    ("crash::strict_refuses_at_once_and_lets_nothing_by", "rate"),
    ("dashboard::every_panel_has_data_and_every_rule_is_understood", "rate: scrapes and rules once a second"),
    ("gateway::callers::strangers_who_hold_connections_keep_nobody_out", "count"),
    ("gateway::running::an_upgrade_hands_the_gateway_over_and_no_connection_fails", "count"),
    (
        "handover::no_connection_fails_and_no_byte_is_lost_with_any_number_of_workers",
        "count: connections without a pause through three take-overs",
    ),
    ("handover::the_control_a_restart_under_the_same_load_loses_connections", "the control of that"),
    (
        "idle::ten_thousand_idle_connections_disturb_nobody_and_give_their_memory_back",
        "count, and a rate beside them",
    ),
    ("idle::tunnels_up_to_the_descriptor_limit", "count"),
    ("issuer::five_hundred_workloads_are_told_apart_under_churn", "count"),
    ("issuer::five_hundred_workloads_over_http2_share_no_connection_and_hold_few", "count"),
    (
        "issuer::certificates_of_seconds_are_renewed_under_load_and_whoever_issues_them",
        "rate: lifetimes of seconds",
    ),
    (
        "migrate::namespace_by_namespace_to_strict_and_back_loses_nobody_whom_the_report_has_not_named",
        "rate: connections without a pause through six reloads",
    ),
    ("reload::ten_reloads_at_load_cost_no_request_and_no_byte", "rate: 300 requests a second, 48 MiB"),
    (
        "upgrade::in_the_middle_of_a_swap_programs_of_both_builds_work_together",
        "rate: 200 connections a second against a pause of a second and a half",
    ),
    ("page::an_agent_that_is_gone_is_said_to_be", "a browser, which knows no kernel"),
    ("page::it_shows_what_is_and_runs_nothing_that_a_pod_wrote", "the same"),
    (
        "handshakes::beside_others_they_go_at_the_workloads_pace_and_nothing_is_lost",
        "rate: several in a second",
    ),
    ("end_to_end::a_pods_own_handshakes_are_at_its_workloads_pace", "the same"),
    ("hostile_pod::a_hostile_pod_takes_what_one_may_have_and_nobody_elses", "count"),
    ("upgrade::the_control_a_stop_and_a_start_under_the_same_load_refuse_connections", "rate"),
    (
        "spiffe::identities::a_new_svid_every_two_seconds_under_load_costs_no_request",
        "rate: 500 requests a second for 20 s",
    ),
    ("upgrade::twenty_upgrades_and_rollbacks_under_load_lose_nothing", "rate"),
    ("bad_responses::sixty_four_pods_never_see_each_others_bytes", "load of 64 pods at a time"),
];

/// Parts of scenarios' names, by the version of the kernel that runs them beside those that all run.
pub(super) type PartsByVersion = BTreeMap<String, Vec<String>>;

/// Runs once more at the end, when the modules are gone that older kernels attach the guard by.
const WITHOUT_MODULES: &str = "unguardable::strict_is_refused_by_name_where_it_cannot_be_guarded";

/// How many scenarios run at a time in a guest: most of them wait, most of the time.
const THREADS: &str = "--test-threads=4";

/// The arguments for the scenarios' executable: the user's own, and what leaves the exceptions out.
///
/// # Errors
/// When an exception names a scenario that does not exist, or one of `more` is in no scenario's name.
pub(super) fn arguments(executable: &Path, own: &[String], more: &PartsByVersion) -> Result<Vec<String>> {
    let list = shell::output(Command::new(executable).args(["--list", "--format=terse"]))?;
    let mut arguments = own.to_vec();
    note("these stay on the host tier:");
    let known = |name: &str| list.lines().any(|line| line.strip_suffix(": test") == Some(name));
    let named = HOST_ONLY.iter().map(|(name, _)| *name).chain([WITHOUT_MODULES]);
    if let Some(name) = named.into_iter().find(|name| !known(name)) {
        bail!("xtask/src/vm/scenarios.rs names {name}, and there is no such scenario");
    }
    for part in more.values().flatten() {
        if !list.lines().any(|line| line.contains(part.as_str())) {
            bail!("--more names {part}, which is in no scenario's name");
        }
    }
    for (name, why) in HOST_ONLY {
        note(&format!("  {name} ({why})"));
        arguments.extend(["--skip".to_owned(), name.to_owned()]);
    }
    if !own.iter().any(|argument| argument.starts_with("--test-threads")) {
        arguments.push(THREADS.to_owned());
    }
    Ok(arguments)
}

/// The scenario to run without the guard's modules; none, where the arguments choose others.
pub(super) fn without_modules(arguments: &[String]) -> Option<&'static str> {
    let mut names = names(arguments).peekable();
    let chosen = names.peek().is_none() || names.any(|name| WITHOUT_MODULES.contains(name.as_str()));
    chosen.then_some(WITHOUT_MODULES)
}

/// The parts of names among libtest's arguments: what is no option, and no option's value.
pub(super) fn names(arguments: &[String]) -> impl Iterator<Item = &String> {
    const WITH_VALUE: [&str; 7] =
        ["--skip", "--test-threads", "--format", "--color", "--logfile", "--shuffle-seed", "-Z"];
    let mut is_value = false;
    arguments.iter().filter(move |argument| {
        let was_value = std::mem::replace(&mut is_value, WITH_VALUE.contains(&argument.as_str()));
        !was_value && !argument.starts_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_is_no_option_and_no_options_value() {
        let given = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let arguments = given("--nocapture guard:: --skip churn --test-threads 2 --test-threads=2 restart::");
        assert_eq!(names(&arguments).collect::<Vec<_>>(), ["guard::", "restart::"]);
        assert_eq!(without_modules(&arguments), None);
        assert_eq!(without_modules(&given("--skip churn")), Some(WITHOUT_MODULES));
        assert_eq!(without_modules(&given("guard:: unguardable")), Some(WITHOUT_MODULES));
    }
}
