//! The scenarios of the routes, one test for each engine.

use crate::support::Engine;

macro_rules! on_every_engine {
    ($($module:ident::$name:ident),* $(,)?) => {
        $(mod $name {
            use super::Engine;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                crate::$module::$name(Engine::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                crate::$module::$name(Engine::Postgres).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mongodb() {
                crate::$module::$name(Engine::Mongodb).await;
            }
        })*
    };
}

on_every_engine! {
    api::every_filter_narrows,
    api::pages_neither_skip_nor_repeat_while_events_arrive,
    api::staged_events_reach_the_timeline,
    api::a_body_that_is_no_event_is_kept_aside_and_accepted,
    audit_scopes::a_caller_reads_exactly_its_part,
    flags::a_flag_is_made_changed_killed_removed_and_made_again,
    flags::of_several_who_read_the_same_version_one_wins,
    flags::a_key_is_given_once_and_a_patch_without_effect_leaves_no_trace,
    flags::decisions_follow_plan_partner_and_environment_and_say_why,
    previews::a_change_reaches_exactly_whom_its_preview_names,
    flags::a_second_process_decides_alike_and_soon_sees_changes,
    directory::a_tenant_is_made_read_and_changed,
    directory::lists_come_in_pages_by_slug,
    directory::a_partner_is_attached_by_id_or_slug_and_their_customers_are_counted,
    directory::a_tenant_passes_from_status_to_status_as_far_as_it_may,
    directory::a_domain_belongs_to_one_tenant,
    directory::users_are_listed_by_their_logins_and_deactivated,
    record::what_comes_again_is_a_duplicate,
}
