/* A kernel module with the face of NVIDIA's: what it shows below /proc/driver/nvidia, and nothing else. */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static struct proc_dir_entry *top;

static int show_version(struct seq_file *out, void *unused)
{
	seq_puts(out, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " DRIVER_VERSION "  Release Build\n"
		      "GCC version:  simulated\n");
	return 0;
}

static int show_gpu(struct seq_file *out, void *unused)
{
	struct pci_dev *gpu = pci_get_device(0x10de, PCI_ANY_ID, NULL);

	seq_printf(out, "Model: \t\t %s\n", gpu && gpu->device == 0x2237 ? "NVIDIA A10G" : "Tesla T4");
	pci_dev_put(gpu);
	seq_puts(out, "IRQ:   \t\t 10\n"
		      "GPU UUID: \t GPU-00000000-0000-0000-0000-000000000000\n"
		      "Bus Type: \t PCIe\nBus Location: \t " GPU_ADDRESS "\nDevice Minor: \t 0\n");
	return 0;
}

static int __init start(void)
{
	struct proc_dir_entry *gpus, *gpu;

	top = proc_mkdir("driver/nvidia", NULL);
	if (!top)
		return -ENOMEM;
	gpus = proc_mkdir("gpus", top);
	gpu = gpus ? proc_mkdir(GPU_ADDRESS, gpus) : NULL;
	if (!gpu || !proc_create_single("version", 0444, top, show_version) ||
	    !proc_create_single("information", 0444, gpu, show_gpu)) {
		proc_remove(top);
		return -ENOMEM;
	}
	return 0;
}

static void __exit stop(void)
{
	proc_remove(top);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("stands in for NVIDIA's kernel module in a test");
MODULE_VERSION(DRIVER_VERSION);
MODULE_LICENSE("GPL");
