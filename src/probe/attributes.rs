//! The device attributes that are asked for: name, number in `CUdevice_attribute`, unit. The one list for the
//! probe, which asks by number, and for the agent, which tells the unit and the source of each value.

/// One attribute of a device.
pub struct Attribute {
    /// Its key in the records and in the JSON document.
    pub name: &'static str,
    /// Its number in `CUdevice_attribute`; these never change.
    pub number: i32,
    /// What its value counts.
    pub unit: &'static str,
}

const fn attribute(name: &'static str, number: i32, unit: &'static str) -> Attribute {
    Attribute { name, number, unit }
}

/// Every attribute, in the order of the numbers.
pub const ATTRIBUTES: &[Attribute] = &[
    attribute("max_threads_per_block", 1, "threads"),
    attribute("max_block_dim_x", 2, "threads"),
    attribute("max_block_dim_y", 3, "threads"),
    attribute("max_block_dim_z", 4, "threads"),
    attribute("max_grid_dim_x", 5, "blocks"),
    attribute("max_grid_dim_y", 6, "blocks"),
    attribute("max_grid_dim_z", 7, "blocks"),
    attribute("shared_memory_per_block", 8, "bytes"),
    attribute("total_constant_memory", 9, "bytes"),
    attribute("warp_size", 10, "threads"),
    attribute("max_pitch", 11, "bytes"),
    attribute("registers_per_block", 12, "registers"),
    attribute("clock_rate", 13, "kHz"),
    attribute("texture_alignment", 14, "bytes"),
    attribute("gpu_overlap", 15, "boolean"),
    attribute("multiprocessor_count", 16, "multiprocessors"),
    attribute("kernel_exec_timeout", 17, "boolean"),
    attribute("integrated", 18, "boolean"),
    attribute("can_map_host_memory", 19, "boolean"),
    attribute("compute_mode", 20, "mode"),
    attribute("texture_1d_width", 21, "texels"),
    attribute("texture_2d_width", 22, "texels"),
    attribute("texture_2d_height", 23, "texels"),
    attribute("texture_3d_width", 24, "texels"),
    attribute("texture_3d_height", 25, "texels"),
    attribute("texture_3d_depth", 26, "texels"),
    attribute("texture_2d_layered_width", 27, "texels"),
    attribute("texture_2d_layered_height", 28, "texels"),
    attribute("texture_2d_layered_layers", 29, "layers"),
    attribute("surface_alignment", 30, "bytes"),
    attribute("concurrent_kernels", 31, "boolean"),
    attribute("ecc_enabled", 32, "boolean"),
    attribute("pci_bus_id", 33, "number"),
    attribute("pci_device_id", 34, "number"),
    attribute("memory_clock_rate", 36, "kHz"),
    attribute("memory_bus_width", 37, "bits"),
    attribute("l2_cache_size", 38, "bytes"),
    attribute("max_threads_per_multiprocessor", 39, "threads"),
    attribute("async_engine_count", 40, "engines"),
    attribute("unified_addressing", 41, "boolean"),
    attribute("texture_1d_layered_width", 42, "texels"),
    attribute("texture_1d_layered_layers", 43, "layers"),
    attribute("pci_domain_id", 50, "number"),
    attribute("compute_capability_major", 75, "number"),
    attribute("compute_capability_minor", 76, "number"),
    attribute("shared_memory_per_multiprocessor", 81, "bytes"),
    attribute("registers_per_multiprocessor", 82, "registers"),
    attribute("managed_memory", 83, "boolean"),
    attribute("pageable_memory_access", 88, "boolean"),
    attribute("compute_preemption", 90, "boolean"),
    attribute("cooperative_launch", 95, "boolean"),
    attribute("cooperative_multi_device_launch", 96, "boolean"),
    attribute("shared_memory_per_block_optin", 97, "bytes"),
    attribute("max_blocks_per_multiprocessor", 106, "blocks"),
    attribute("gpu_direct_rdma", 116, "boolean"),
    attribute("cluster_launch", 120, "boolean"),
    attribute("dma_buf", 124, "boolean"),
    attribute("numa_id", 131, "number"),
    attribute("multicast", 132, "boolean"),
    attribute("mps_enabled", 133, "boolean"),
];
