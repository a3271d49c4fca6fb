//! What cannot be run is refused in one line that names cause and remedy, and leaves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bundles;
mod expect;
mod fields;
mod host;
mod images;
mod options;
mod programs;
mod verbs;

use bulkhead_tests::suite;

use bundles::*;
use fields::*;
use host::*;
use images::*;
use options::*;
use programs::*;
use verbs::*;

suite! {
    both:
        program_missing_is_127,
        program_not_executable_is_126,
        kernel_of_the_other_flavour_refused,
        memory_beyond_the_host_refused;
    uml:
        bundle_missing_refused,
        bundle_without_configuration_refused,
        bundle_that_is_a_file_refused,
        configuration_not_json_refused_with_its_position,
        configuration_cut_short_refused_with_its_position,
        configuration_of_ten_megabytes_refused,
        configuration_that_is_a_directory_refused,
        configuration_that_is_a_fifo_refused_at_once,
        configuration_of_random_bytes_refused,
        rootfs_of_a_bundle_unusable_refused,
        fields_with_wrong_values_refused_by_name,
        fields_that_cannot_be_done_refused_by_name,
        resources_that_would_not_be_enforced_refused_by_name,
        annotations_unknown_or_forbidden_refused,
        image_missing_refused,
        image_that_is_none_refused,
        image_archive_truncated_refused,
        image_with_wrong_digests_refused,
        image_layer_that_leaves_the_root_refused,
        image_layer_through_a_symlink_stays_inside,
        sizes_and_numbers_not_understood_refused,
        volumes_not_understood_refused,
        volumes_that_cannot_be_shared_refused,
        users_not_understood_refused,
        security_options_not_understood_refused,
        seccomp_profiles_unusable_refused,
        arguments_not_utf8_refused,
        names_invalid_refused,
        flags_unknown_refused,
        forms_mixed_refused,
        rootfs_unusable_refused,
        rootfs_unreadable_refused,
        command_missing_from_the_line_refused,
        working_directory_missing_tells_why,
        program_with_a_foreign_format_is_126,
        name_in_use_refused_and_its_owner_unharmed,
        verbs_on_nothing_refused,
        verbs_with_bad_arguments_refused,
        kernel_unknown_refused,
        kernel_store_empty_refused,
        initramfs_missing_refused,
        hypervisor_unknown_refused,
        configuration_file_broken_refused,
        caller_without_privileges_refused,
        state_directory_unusable_refused,
        log_file_unusable_refused;
}
