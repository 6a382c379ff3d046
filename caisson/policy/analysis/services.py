"""Services that every system knows: those of the specification sheet `qrexec`, section 6."""

from __future__ import annotations

STANDARD_SERVICES = frozenset(
    """
    policy.EvalGUI policy.EvalSimple policy.GetFiles policy.Get policy.List policy.RegisterArgument
    policy.Remove policy.Replace policy.include.Get policy.include.List policy.include.Remove
    policy.include.Replace
    qubes.Backup qubes.ClipboardPaste qubes.ConnectTCP qubes.DetachPciDevice qubes.FeaturesRequest
    qubes.Filecopy qubes.GetAppmenus qubes.GetDate qubes.GetImageRGBA qubes.GetRandomizedTime
    qubes.Gpg qubes.GpgImportKey qubes.InputKeyboard qubes.InputMouse qubes.InputTablet
    qubes.InstallUpdatesGUI qubes.Log qubes.NotifyTools qubes.NotifyUpdates qubes.Notifications
    qubes.OpenInVM qubes.OpenURL qubes.PdfConvert qubes.PostInstall qubes.ReceiveUpdates
    qubes.RegisterBackupLocation qubes.ResizeDisk qubes.Restore qubes.RestoreById
    qubes.SelectDirectory qubes.SelectFile qubes.SetDateTime qubes.SetMonitorLayout
    qubes.ShowInTerminal qubes.StartApp qubes.SuspendPost qubes.SuspendPostAll qubes.SuspendPre
    qubes.SuspendPreAll qubes.SyncAppMenus qubes.SyncNtpClock qubes.TemplateDownload
    qubes.TemplateSearch qubes.UpdatesProxy qubes.VMAuth qubes.VMExec qubes.VMExecGUI
    qubes.VMRootExec qubes.VMRootShell qubes.VMShell qubes.WaitForNetworkUplink
    qubes.WaitForRunningSystem qubes.WaitForSession
    """.split()
)
