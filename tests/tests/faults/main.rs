//! Nothing is left, nothing is lost: whichever process ends at whichever moment, every trace of the
//! container goes, and what is reported is true.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod crowd;
mod damaged;
mod exhausted;
mod guest;
mod killed;
mod lib_dir;
mod scene;
mod starts;
mod storm;
mod verbs;

use bulkhead_tests::suite;

use crowd::*;
use damaged::*;
use exhausted::*;
use guest::*;
use killed::*;
use starts::*;
use storm::*;
use verbs::*;

suite! {
    alone;
    both:
        end_in_order_leaves_nothing,
        end_by_signal_leaves_nothing,
        kernel_image_damaged_fails_clean,
        initramfs_damaged_fails_clean,
        command_killed_while_running_takes_all_along,
        sandbox_killed_while_running_is_told,
        hypervisor_killed_while_running_is_told,
        device_process_killed_while_running_is_told,
        command_killed_while_booting_takes_all_along,
        sandbox_killed_while_booting_is_told,
        hypervisor_killed_while_booting_is_told,
        device_process_killed_while_booting_is_told,
        each_process_killed_while_ending_leaves_nothing,
        command_and_sandbox_killed_listed_truthfully,
        sandbox_terminated_ends_the_container_in_order,
        agent_killed_is_reported,
        kernel_panic_is_reported,
        container_out_of_memory_is_reported,
        guest_out_of_memory_is_reported,
        each_process_killed_at_exec_is_told;
    uml:
        each_process_killed_while_creating_calls_it_off,
        each_process_killed_during_a_hook_calls_the_creation_off,
        each_process_killed_at_start_is_told,
        each_process_killed_at_detached_exec_is_told,
        each_process_killed_at_kill_is_told,
        each_process_killed_at_pause_is_told,
        each_process_killed_at_resume_is_told,
        each_process_killed_at_update_is_told,
        each_process_killed_at_delete_leaves_nothing,
        each_process_killed_between_verbs_is_told,
        standin_of_an_exec_killed_early_leaves_no_process,
        kernel_image_missing_fails_clean,
        initramfs_empty_fails_clean,
        hypervisor_that_exits_at_once_fails_clean,
        hypervisor_that_never_calls_home_fails_clean,
        program_missing_fails_clean,
        start_called_off_by_a_signal_leaves_nothing,
        bundle_refused_leaves_nothing,
        everything_killed_at_once_listed_truthfully,
        kept_container_with_its_processes_killed_stays_listed,
        state_damaged_is_told_and_removable,
        journal_damaged_under_a_running_container_is_told_and_removable,
        journal_damaged_of_an_ended_container_is_told_and_removable,
        journal_damaged_of_a_group_leaves_no_group,
        sockets_removed_container_is_told_of_and_removable,
        directory_replaced_by_a_file_is_told_and_removable,
        directory_removed_under_a_running_container_can_still_be_ended,
        one_of_two_deleted_by_force_leaves_the_other,
        one_of_two_damaged_and_deleted_by_force_leaves_the_other,
        storm_of_execs_leaves_memory_and_descriptors_where_they_were,
        agent_frozen_container_still_killable,
        disk_full_fails_clean_at_every_step,
        disk_full_create_fails_clean_at_every_step,
        disk_filled_while_running_is_survived,
        descriptors_exhausted_fails_clean_at_every_step,
        processes_exhausted_fails_clean,
        same_name_twice_at_once_has_one_winner,
        ten_at_once_start_and_end_clean,
        containers_made_and_killed_in_a_row_leave_nothing;
}

mod peers {
    use super::*;

    bulkhead_tests::bundle_suite! {
        both: ;
        uml:
            process_killed_between_verbs_is_stopped_for_each,
            container_survives_a_disk_filled_later;
        ours: ;
    }
}
