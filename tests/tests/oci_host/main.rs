//! What the host does for an engine's container beside its machine: control group, hooks, and the verbs
//! that change or show what a container has.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod groups;
mod hooks;
mod made;
mod together;
mod verbs;

use bulkhead_tests::bundle_suite;
use groups::*;
use hooks::*;
use together::*;
use verbs::*;

bundle_suite! {
    both:
        process_of_the_engine_is_in_the_group_in_every_hierarchy,
        hooks_run_in_order_each_with_the_state,
        file_written_between_creation_and_start_is_seen;
    uml:
        relative_path_is_below_the_engines_own_group,
        limits_of_cpu_are_those_of_the_group,
        reading_from_a_throttled_device_takes_its_time,
        hook_has_its_arguments_and_environment_in_the_bundle,
        create_container_hook_is_in_the_containers_network,
        hooks_of_the_engine_are_not_in_the_containers_group,
        hook_that_fails_calls_the_creation_off,
        hook_over_its_time_is_killed_and_calls_the_creation_off,
        hooks_of_an_attached_container_run_as_well,
        update_of_an_ended_container_is_refused,
        events_once_have_what_is_used,
        events_come_until_the_container_has_ended,
        created_container_is_deleted_without_force,
        signal_to_an_ended_container_is_answered_in_the_words_engines_look_for,
        processes_as_json_are_those_of_the_host,
        created_container_takes_a_process_and_can_be_paused,
        verbs_do_not_wait_for_one_on_another_container,
        verbs_do_not_wait_for_one_on_another_container_of_the_machine,
        start_container_hook_runs_in_the_container;
    ours:
        limits_of_memory_and_processes_leave_room_for_the_machine,
        machine_is_in_the_group_with_all_its_processes,
        events_have_what_each_device_has_done;
}

mod ours {
    use super::*;

    bulkhead_tests::suite! {
        both: ;
        uml:
            group_is_gone_with_its_parents_after_the_end,
            group_is_gone_after_a_start_that_failed,
            group_is_gone_after_a_hook_that_failed,
            group_of_a_killed_sandbox_is_removed_by_the_next_verb,
            parent_of_two_is_removed_by_the_last,
            group_that_was_there_is_used_and_left,
            path_that_names_no_group_is_refused,
            cpus_that_are_not_there_are_refused_by_name,
            cpus_without_a_group_are_refused,
            limits_of_the_hosts_for_a_further_container_of_a_machine_are_refused,
            poststart_hook_runs_when_the_program_does,
            start_container_hook_that_fails_keeps_the_program_from_running,
            poststart_hook_that_fails_ends_the_container,
            poststop_hook_that_fails_keeps_nothing_from_being_removed,
            poststop_hooks_of_a_killed_sandbox_run_once,
            sandbox_killed_during_a_hook_leaves_nothing,
            delete_by_force_ends_a_hook_that_hangs,
            update_changes_limits_in_the_guest_and_on_the_host,
            update_takes_limits_from_a_file_or_its_input,
            update_that_cannot_be_done_changes_nothing,
            features_name_mount_options_that_work,
            features_are_those_of_the_product,
            checkpoint_and_restore_say_why_not,
            version_is_as_engines_parse_it,
            global_options_of_runc_are_understood,
            state_does_not_wait_for_a_verb_on_the_same_container,
            standin_takes_less_than_a_mebibyte;
    }
}
