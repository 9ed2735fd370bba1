/* Stands in for nvidia-uvm and nvidia-modeset, which only have to be there. */
#include <linux/module.h>

static int __init start(void)
{
	return 0;
}

static void __exit stop(void)
{
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("stands in for one of NVIDIA's kernel modules in a test");
MODULE_VERSION(DRIVER_VERSION);
MODULE_LICENSE("GPL");
